//! Everything that was found, and how it hangs together.

use heapless::Vec;
use platform::dt::Interrupt;
use platform::pcie::InterruptMap;

use super::{Bdf, Bridge, Function, Kind, Pin, Port};

/// The most functions of one machine, bridges included.
pub const MAX_FUNCTIONS: usize = 128;

/// The functions of one host bridge.
///
/// It is large: keep it in a static.
#[derive(Debug, Default)]
pub struct Topology {
    pub(super) functions: Vec<Function, MAX_FUNCTIONS>,
}

impl Topology {
    /// Returns a topology without functions.
    pub const fn new() -> Self {
        Self { functions: Vec::new() }
    }

    /// Returns every function, each bus in order of address, the root bus first.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Returns the function at `at`.
    pub fn get(&self, at: Bdf) -> Option<&Function> {
        self.functions.iter().find(|function| function.at == at)
    }

    /// Returns the bridges from `function` to the root, the nearest first.
    pub fn bridges_above<'a>(
        &'a self,
        function: &'a Function,
    ) -> impl Iterator<Item = &'a Function> {
        let parent = |function: &Function| self.functions.get(usize::from(function.parent?));
        core::iter::successors(parent(function), move |bridge| parent(bridge))
    }

    /// Returns every function on the bus right below `bridge`.
    pub fn right_below(&self, bridge: Bridge) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |function| {
            function.parent.is_some() && function.at.bus() == bridge.secondary
        })
    }

    /// Returns the requester ID with which the function's DMA arrives at the root, and therefore at the SMMU.
    ///
    /// Conventional buses know no requester IDs: the bridge above them puts its own on the request, or that of
    /// device 0 on the bus below it (PCI Express to PCI/PCI-X Bridge Specification, section 2.3).
    pub fn requester(&self, function: &Function) -> Bdf {
        let mut requester = function.at;
        for bridge in self.bridges_above(function) {
            let Kind::Bridge(buses) = bridge.kind else { break };
            match bridge.capabilities.express.map(|express| express.port) {
                Some(Port::ToConventional) => {
                    requester = Bdf::from_requester_id(u16::from(buses.secondary) << 8);
                }
                Some(Port::Root | Port::Upstream | Port::Downstream) => {}
                Some(Port::Endpoint | Port::Other) | None => requester = bridge.at,
            }
        }
        requester
    }

    /// Returns every other endpoint that cannot be isolated from `function`: they share its requester ID, or no
    /// access control is between them. One VM owns all of them or none.
    pub fn inseparable<'a>(&'a self, function: &'a Function) -> impl Iterator<Item = &'a Function> {
        self.functions.iter().filter(move |other| {
            other.group == function.group && other.at != function.at && other.kind == Kind::Endpoint
        })
    }

    /// Returns the pin of a function on the root bus at which the function's own pin arrives: bridges swizzle.
    pub fn root_pin(&self, function: &Function) -> Option<(Bdf, Pin)> {
        let first = (function.at, function.pin?);
        Some(
            self.bridges_above(function)
                .fold(first, |(at, pin), bridge| (bridge.at, pin.swizzle(at.device()))),
        )
    }

    /// Returns the interrupt that the function's pin raises; `None` if it has no pin or the pin leads nowhere.
    pub fn interrupt(&self, function: &Function, map: &InterruptMap) -> Option<Interrupt> {
        let (at, pin) = self.root_pin(function)?;
        map.interrupt(at, pin)
    }

    /// Whether [`super::quiesce`] has something better than bus master off for the function, if its owner owns
    /// everything on its bus, and the function does what it says. A virtio device counts, whose modern
    /// interface [`super::dma_check`] has found.
    pub fn has_reset(&self, function: &Function) -> bool {
        let own = &function.capabilities;
        own.express.is_some_and(|express| express.flr)
            || own.advanced.is_some()
            || own.power.is_some_and(|power| power.forgets)
            || function.is_virtio() && !own.vendor.is_empty()
            || self.bus_reset(function).is_some()
    }

    /// Returns the bridge whose secondary bus reset would reset the function and other endpoints, no bridge.
    pub(super) fn bus_reset<'a>(
        &'a self,
        function: &'a Function,
    ) -> Option<(&'a Function, Bridge)> {
        let above = self.bridges_above(function).next()?;
        let Kind::Bridge(bridge) = above.kind else { return None };
        let endpoints = self.right_below(bridge).all(|below| below.kind == Kind::Endpoint);
        endpoints.then_some((above, bridge))
    }

    /// Puts together what cannot be kept apart.
    pub(super) fn form_groups(&mut self) {
        for index in 0..self.functions.len() {
            self.join_neighbours(index);
            self.join_bridge(index);
        }
    }

    /// Functions of one device reach each other inside it, unless all of them have access control.
    fn join_neighbours(&mut self, index: usize) {
        let function = &self.functions[index];
        if !function.multi_function || function.isolated {
            return;
        }
        let device = (function.at.bus(), function.at.device());
        for other in 0..self.functions.len() {
            let at = self.functions[other].at;
            if (at.bus(), at.device()) == device {
                self.join(index, other);
            }
        }
    }

    /// A bridge that cannot keep what is below it apart from what is beside it is one with it.
    fn join_bridge(&mut self, index: usize) {
        let function = &self.functions[index];
        let Some(parent) = function.parent.map(usize::from) else { return };
        let bridge = &self.functions[parent];
        let bus = bridge.at.bus();
        match bridge.capabilities.express.map(|express| express.port) {
            // A switch is what is below its upstream port, and its downstream ports decide.
            Some(Port::Upstream) => {}
            Some(Port::Root) if bridge.isolated => {}
            // Root ports are kept apart by the root complex, as section 1.3.1 lets one assume.
            Some(Port::Root) => self.join(index, parent),
            // One downstream port without access control lets requests through to what is below any other.
            Some(Port::Downstream) if self.on_bus(bus).all(|port| port.isolated) => {}
            Some(Port::Downstream) => {
                self.join(index, parent);
                for other in 0..self.functions.len() {
                    if self.functions[other].at.bus() == bus {
                        self.join(parent, other);
                    }
                }
            }
            Some(Port::ToConventional | Port::Endpoint | Port::Other) | None => {
                self.join(index, parent)
            }
        }
    }

    fn on_bus(&self, bus: u8) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |function| function.at.bus() == bus)
    }

    fn join(&mut self, one: usize, other: usize) {
        let (kept, gone) = (self.functions[one].group, self.functions[other].group);
        for function in &mut self.functions {
            if function.group == gone {
                function.group = kept;
            }
        }
    }
}
