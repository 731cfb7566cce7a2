//! Making functions stop.
//!
//! Bus master off keeps a function from starting requests, but a function may have promised some already: a
//! device model, or a posted write in a bridge. Only a reset ends those for good, so a function that has one
//! gets it. Whether a reset happened is not believed but looked at: the command register must have lost its
//! bits, or a virtio device its status.

use heapless::Vec;

use super::virtio;
use super::{
    Bdf, Bridge, Capabilities, Config, ConfigSpace, DeviceMemory, Function, Kind, MAX_VM_FUNCTIONS,
    Patience, Port, Topology, reg,
};

/// How long outstanding requests may take to complete or to time out, in microseconds. The default completion
/// timeout is at most 50 ms (section 2.8).
const PENDING_US: u64 = 200_000;
/// After a function-level reset, and after a bus reset below a PCI Express port (section 6.6.1).
const RESET_US: u64 = 100_000;
/// After a reset of a conventional bus: 2^25 clocks (PCI Local Bus Specification 3.0, section 4.3.2).
const CONVENTIONAL_RESET_US: u64 = 1_000_000;
/// How long a bus reset is asserted; at least 1 ms.
const BUS_RESET_US: u64 = 2_000;
/// Between D3hot and D0, each way (section 5.9).
const POWER_US: u64 = 10_000;
/// How long a function may answer "not yet" after a reset (section 2.3.1).
const READY_US: u64 = 1_000_000;

/// Whether a function may be reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetPolicy {
    /// Yes, by whatever it has: function-level reset, virtio's, power management, secondary bus reset.
    #[default]
    Auto,
    /// No: bus master off must do.
    BusMaster,
}

/// One function to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub function: Bdf,
    /// Whether it may be reset.
    pub policy: ResetPolicy,
}

/// Which of the functions to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those that master the bus or wait for an answer; the others are left as they are.
    Armed,
}

/// How a function was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Function-level reset, of the PCI Express or of the advanced features capability.
    Flr,
    /// Through D3hot.
    Pm,
    /// Through the status register of a virtio device. Its configuration space stays.
    Virtio,
    /// Secondary bus reset of the bridge above it.
    BusReset,
    /// Bus master off and nothing else: what it knows, it still knows.
    BusMaster,
    /// Not at all: it was neither mastering the bus nor waiting.
    Idle,
}

impl How {
    /// Returns the report's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flr => "flr",
            Self::Pm => "pm",
            Self::Virtio => "virtio",
            Self::BusReset => "bus-reset",
            Self::BusMaster => "bus-master",
            Self::Idle => "idle",
        }
    }

    /// Whether the function has forgotten what it was told.
    pub const fn is_reset(self) -> bool {
        matches!(self, Self::Flr | Self::Pm | Self::Virtio | Self::BusReset)
    }
}

/// What became of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiesced {
    /// Which.
    pub function: Bdf,
    /// Whether it could do DMA when it was stopped (C6).
    pub armed: bool,
    /// How.
    pub how: How,
    /// Whether, as far as its configuration space tells, it neither masters the bus nor waits for an answer.
    /// Without a reset that is the weaker proof, see [`How::is_reset`]: it does for a function that never had one, or
    /// must not be reset, but not for one that was to be reset and was not.
    pub clean: bool,
    /// Whether it was to be reset, and whatever it has that resets a function did not do so: then it is not clean.
    pub unreset: bool,
    /// Whether its configuration is as it should be. If not, it is lost until a later reset brings it back, and
    /// nobody may use it.
    pub usable: bool,
}

/// Whether the function may do DMA now. One that has vanished is taken to be armed.
pub fn is_armed<C: ConfigSpace>(space: &C, function: &Function) -> bool {
    Config::new(space, function.at).read16(reg::COMMAND) & reg::COMMAND_BUS_MASTER != 0
}

/// Lets the function start DMA. Its stream is closed.
pub fn bus_master_on<C: ConfigSpace>(space: &C, function: &Function) {
    let config = Config::new(space, function.at);
    config.write16(reg::COMMAND, config.read16(reg::COMMAND) | reg::COMMAND_BUS_MASTER);
}

/// Keeps the function from starting DMA, and returns whether it obeyed.
pub fn bus_master_off<C: ConfigSpace>(space: &C, function: &Function) -> bool {
    Config::new(space, function.at).clear16(reg::COMMAND, reg::COMMAND_BUS_MASTER);
    !is_armed(space, function)
}

/// Stops functions, all of one owner and at most [`MAX_VM_FUNCTIONS`]: bus master off, outstanding requests
/// waited for, then the best reset that each has and its policy allows.
///
/// The owner's whole list belongs into one call: waits are shared, and a bridge is reset only if everything
/// below it is on the list. A function that `topology` does not know as an endpoint is left out of the answer.
///
/// Afterwards bus master is off, BARs decode where they were placed, the interrupt pin is enabled or disabled
/// as it was, and the other registers that EL2 lets a guest write are as they were. A call takes at most about
/// four seconds, and two more for every bus that it resets: it must not hold what another VM waits for (C7).
pub fn quiesce<H: ConfigSpace + DeviceMemory + Patience>(
    hardware: &H,
    topology: &Topology,
    requests: &[Request],
    scope: Scope,
) -> Vec<Quiesced, MAX_VM_FUNCTIONS> {
    let mut jobs = Vec::<Job<'_>, MAX_VM_FUNCTIONS>::new();
    for request in requests {
        let endpoint =
            topology.get(request.function).filter(|function| function.kind == Kind::Endpoint);
        if let Some(function) = endpoint {
            // More than a VM can own cannot be asked for.
            _ = jobs.push(Job::begin(hardware, function, request.policy));
        }
    }
    wait_until(hardware, PENDING_US, || jobs.iter().all(|job| !job.is_pending(hardware)));
    if scope == Scope::Armed {
        for job in jobs.iter_mut().filter(|job| !job.armed && !job.is_pending(hardware)) {
            job.stopped = Some(How::Idle);
        }
    }
    run(hardware, &mut jobs, Method::Flr);
    reset_virtio(hardware, &mut jobs);
    run(hardware, &mut jobs, Method::Pm);
    reset_buses(hardware, topology, &mut jobs);
    jobs.iter().map(|job| job.end(hardware)).collect()
}

/// A reset that concerns one function only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Function-level reset.
    Flr,
    /// D3hot and back.
    Pm,
}

/// Resets a function because its guest asked for it, and leaves every register as after a reset, but BARs
/// placed and decoding.
pub(crate) fn reset_to_cold<H: ConfigSpace + Patience>(
    hardware: &H,
    function: &Function,
    method: Method,
) -> Quiesced {
    let mut job = Job::begin(hardware, function, ResetPolicy::Auto);
    job.saved = Saved { command: function.decode(), ..Saved::default() };
    wait_until(hardware, PENDING_US, || !job.is_pending(hardware));
    run(hardware, core::slice::from_mut(&mut job), method);
    job.end(hardware)
}

/// Brings a function into D0, if it is in another power state.
pub(super) fn to_d0<H: ConfigSpace + Patience>(hardware: &H, config: &Config<'_, H>, power: u16) {
    if config.read16(power + reg::POWER_CONTROL) & reg::POWER_STATE != 0 {
        set_power(config, power, 0);
        wait(hardware, POWER_US);
    }
}

fn set_power<C: ConfigSpace>(config: &Config<'_, C>, power: u16, state: u16) {
    // Nothing else in this register is EL2's business; the status bit clears on 1.
    config.write16(power + reg::POWER_CONTROL, state);
}

fn wait(clock: &impl Patience, us: u64) {
    wait_until(clock, us, || false);
}

/// Waits until `done`, but at most `us` microseconds.
fn wait_until(clock: &impl Patience, us: u64, done: impl Fn() -> bool) {
    let start = clock.now_us();
    while !done() && clock.now_us().saturating_sub(start) < us {
        clock.meanwhile();
    }
}

/// What a reset forgets and the guest's view keeps.
#[derive(Clone, Copy, Debug, Default)]
struct Saved {
    command: u16,
    cache_line: u8,
    interrupt_line: u8,
    device_control: Option<u16>,
}

/// One function on its way.
struct Job<'a> {
    function: &'a Function,
    policy: ResetPolicy,
    armed: bool,
    saved: Saved,
    /// Decode and interrupt bits that the command register really held before the reset.
    witness: u16,
    /// A reset of it was begun.
    tried: bool,
    stopped: Option<How>,
}

impl<'a> Job<'a> {
    /// Stops what is stopped at once.
    fn begin<C: ConfigSpace>(space: &C, function: &'a Function, policy: ResetPolicy) -> Self {
        let config = Config::new(space, function.at);
        let command = config.read16(reg::COMMAND);
        let quiet = function.decode() | reg::COMMAND_INTX_DISABLE;
        let saved = Saved {
            command: function.decode() | command & reg::COMMAND_INTX_DISABLE,
            cache_line: config.read8(reg::CACHE_LINE),
            interrupt_line: config.read8(reg::INTERRUPT_LINE),
            device_control: function.capabilities.express.map(|express| {
                config.read16(express.offset + reg::DEVICE_CONTROL) & !reg::DEVICE_CONTROL_FLR
            }),
        };
        config.write16(reg::COMMAND, quiet);
        Self {
            function,
            policy,
            armed: command & reg::COMMAND_BUS_MASTER != 0,
            saved,
            witness: config.read16(reg::COMMAND) & quiet,
            tried: false,
            stopped: None,
        }
    }

    fn config<'h, C: ConfigSpace>(&self, space: &'h C) -> Config<'h, C> {
        Config::new(space, self.function.at)
    }

    fn wants_reset(&self) -> bool {
        self.stopped.is_none() && self.policy == ResetPolicy::Auto
    }

    /// Whether the function waits for an answer, as far as it can say. One that has vanished does.
    fn is_pending<C: ConfigSpace>(&self, space: &C) -> bool {
        let config = self.config(space);
        let capabilities = &self.function.capabilities;
        let express = capabilities.express.is_some_and(|express| {
            config.read16(express.offset + reg::DEVICE_STATUS) & reg::DEVICE_STATUS_PENDING != 0
        });
        let advanced = capabilities.advanced.is_some_and(|offset| {
            config.read8(offset + reg::ADVANCED_STATUS) & reg::ADVANCED_STATUS_PENDING != 0
        });
        express || advanced
    }

    /// Starts a reset, if the function has this one.
    fn start<C: ConfigSpace>(&self, space: &C, method: Method) -> bool {
        let config = self.config(space);
        let capabilities = &self.function.capabilities;
        match method {
            Method::Flr => {
                if let Some(express) = capabilities.express.filter(|express| express.flr) {
                    let control = express.offset + reg::DEVICE_CONTROL;
                    config.write16(control, config.read16(control) | reg::DEVICE_CONTROL_FLR);
                } else if let Some(advanced) = capabilities.advanced {
                    config.write8(advanced + reg::ADVANCED_CONTROL, reg::ADVANCED_CONTROL_FLR);
                } else {
                    return false;
                }
            }
            Method::Pm => {
                let Some(power) = capabilities.power.filter(|power| power.forgets) else {
                    return false;
                };
                set_power(&config, power.offset, reg::POWER_D3);
            }
        }
        true
    }

    /// Whether the function answers.
    fn answers<C: ConfigSpace>(&self, space: &C) -> bool {
        let id = u32::from(self.function.device) << 16 | u32::from(self.function.vendor);
        self.config(space).read32(reg::VENDOR_ID) == id
    }

    /// Puts the configuration back after a reset; returns whether the function was reset at all and can be
    /// used.
    fn revive<H: ConfigSpace + Patience>(&self, hardware: &H) -> bool {
        let config = self.config(hardware);
        let function = self.function;
        // Where no command bit sticks there is nothing to see.
        let kept = self.witness != 0 && config.read16(reg::COMMAND) & self.witness == self.witness;
        if let Some(power) = function.capabilities.power {
            to_d0(hardware, &config, power.offset);
        }
        config.write16(reg::COMMAND, 0);
        // What has to be off is off after a reset; a function that thinks otherwise is told again.
        Capabilities::discover(&config);
        function.capabilities.isolate(&config);
        function.write_bars(&config);
        config.write8(reg::CACHE_LINE, self.saved.cache_line);
        config.write8(reg::INTERRUPT_LINE, self.saved.interrupt_line);
        if let (Some(express), Some(control)) =
            (function.capabilities.express, self.saved.device_control)
        {
            config.write16(express.offset + reg::DEVICE_CONTROL, control);
        }
        config.write16(reg::COMMAND, self.saved.command);
        !kept && self.is_usable(hardware)
    }

    /// Whether the function answers, is silent, and decodes its BARs where they were placed.
    fn is_usable<C: ConfigSpace>(&self, space: &C) -> bool {
        let config = self.config(space);
        let decode = reg::COMMAND_IO | reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER;
        self.answers(space)
            && config.read16(reg::COMMAND) & decode == self.function.decode()
            && self.function.bars_in_place(&config)
    }

    fn end<C: ConfigSpace>(&self, space: &C) -> Quiesced {
        let how = self.stopped.unwrap_or(How::BusMaster);
        let unreset = self.tried && !how.is_reset();
        let config = self.config(space);
        config.write16(reg::COMMAND, self.saved.command);
        Quiesced {
            function: self.function.at,
            armed: self.armed,
            how,
            clean: !unreset && !is_armed(space, self.function) && !self.is_pending(space),
            unreset,
            usable: self.is_usable(space),
        }
    }
}

/// Resets every function that still needs it by `method`, all at the same time.
fn run<H: ConfigSpace + Patience>(hardware: &H, jobs: &mut [Job<'_>], method: Method) {
    let mut started = Vec::<usize, MAX_VM_FUNCTIONS>::new();
    for (index, job) in jobs.iter_mut().enumerate() {
        if job.wants_reset() && job.start(hardware, method) {
            job.tried = true;
            // There are no more jobs than this holds.
            _ = started.push(index);
        }
    }
    if started.is_empty() {
        return;
    }
    let how = match method {
        Method::Flr => {
            wait(hardware, RESET_US);
            How::Flr
        }
        Method::Pm => {
            wait(hardware, POWER_US);
            for &index in &started {
                if let Some(power) = jobs[index].function.capabilities.power {
                    set_power(&jobs[index].config(hardware), power.offset, 0);
                }
            }
            wait(hardware, POWER_US);
            How::Pm
        }
    };
    wait_until(hardware, READY_US, || started.iter().all(|&index| jobs[index].answers(hardware)));
    for &index in &started {
        if jobs[index].revive(hardware) {
            jobs[index].stopped = Some(how);
        }
    }
}

/// Resets every virtio device that still needs it.
fn reset_virtio<H: ConfigSpace + DeviceMemory + Patience>(hardware: &H, jobs: &mut [Job<'_>]) {
    let mut started = Vec::<usize, MAX_VM_FUNCTIONS>::new();
    for (index, job) in jobs.iter_mut().enumerate() {
        if job.wants_reset() && virtio::start_reset(hardware, job.function) {
            job.tried = true;
            // There are no more jobs than this holds.
            _ = started.push(index);
        }
    }
    let is_reset = |index: &usize| virtio::is_reset(hardware, jobs[*index].function);
    wait_until(hardware, READY_US, || started.iter().all(is_reset));
    started.retain(is_reset);
    for index in started {
        jobs[index].stopped = Some(How::Virtio);
    }
}

/// Resets the buses of functions that still need it, where the owner owns everything on the bus.
fn reset_buses<H: ConfigSpace + Patience>(hardware: &H, topology: &Topology, jobs: &mut [Job<'_>]) {
    for index in 0..jobs.len() {
        if !jobs[index].wants_reset() {
            continue;
        }
        let Some((above, bridge)) = topology.bus_reset(jobs[index].function) else { continue };
        if !owns_bus(topology, bridge, jobs) {
            continue;
        }
        let config = Config::new(hardware, above.at);
        let control = config.read16(reg::BRIDGE_CONTROL);
        config.write16(reg::BRIDGE_CONTROL, control | reg::BRIDGE_CONTROL_BUS_RESET);
        wait(hardware, BUS_RESET_US);
        config.write16(reg::BRIDGE_CONTROL, control & !reg::BRIDGE_CONTROL_BUS_RESET);
        let port = above.capabilities.express.map(|express| express.port);
        let express = matches!(port, Some(Port::Root | Port::Downstream | Port::Upstream));
        wait(hardware, if express { RESET_US } else { CONVENTIONAL_RESET_US });
        let below = |job: &Job<'_>| job.function.at.bus() == bridge.secondary;
        wait_until(hardware, READY_US, || {
            jobs.iter().all(|job| !below(job) || job.answers(hardware))
        });
        for job in jobs.iter_mut().filter(|job| below(job)) {
            job.tried |= job.wants_reset();
            if job.revive(hardware) && job.stopped.is_none_or(|how| how == How::Idle) {
                job.stopped = Some(How::BusReset);
            }
        }
    }
}

/// Whether all functions on the bus below `bridge` are among `jobs` and may be reset.
fn owns_bus(topology: &Topology, bridge: Bridge, jobs: &[Job<'_>]) -> bool {
    topology.right_below(bridge).all(|function| {
        jobs.iter().any(|job| job.function.at == function.at && job.policy == ResetPolicy::Auto)
    })
}
