//! Who owns what: the bundle's claims against the machine, before anything is given to anybody.

use core::fmt;

use heapless::Vec;
use platform::bundle::{MAX_FUNCTIONS, MAX_VMS, OnExit, Reset, VmConfig};
use platform::dt::{Machine, Phandle};
use platform::pcie::Bdf;
use platform::report::Name;
use smmu::addr::StreamId;

use crate::pci::{Bypass, Function, Topology, Unassignable};

/// A function that a VM owns, and how the SMMU knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Its physical address.
    pub address: Bdf,
    /// How it may be reset.
    pub reset: Reset,
    /// The SMMU that sees its DMA.
    pub smmu: Phandle,
    /// Its stream there.
    pub sid: StreamId,
}

/// The functions of one VM.
pub type VmFunctions = Vec<Owned, MAX_FUNCTIONS>;

/// Why a VM cannot have what it claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The VM.
    pub vm: Name,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The machine has no such CPU.
    NoCpu {
        /// The CPU.
        cpu: u32,
        /// How many there are.
        cpus: usize,
    },
    /// There is nothing at this address.
    NoFunction(Bdf),
    /// No VM can own this function.
    Unassignable(Bdf, Unassignable),
    /// Its DMA is not seen by an SMMU that EL2 owns.
    NoStream(Bdf),
    /// Its DMA would pass the SMMU by.
    Bypass(Bdf, Bypass),
    /// It cannot be told apart from a function that this VM does not own.
    Inseparable(Bdf, Bdf),
    /// Its interrupt line is that of a function of another VM.
    SharedLine {
        /// The function.
        function: Bdf,
        /// The other one.
        other: Bdf,
        /// The other one's owner.
        owner: Name,
    },
    /// The VM restarts, but nothing makes this function forget what it was told.
    NoReset(Bdf),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}: ", self.vm)?;
        match &self.problem {
            Problem::NoCpu { cpu, cpus } => {
                write!(f, "CPU {cpu} does not exist, there are {cpus}: change `cpus`")
            }
            Problem::NoFunction(at) => {
                write!(f, "there is no PCI function at {at}: change its address or add the device")
            }
            Problem::Unassignable(at, why) => write!(f, "{at} cannot be given away: {why}"),
            Problem::NoStream(at) => write!(
                f,
                "the DMA of {at} passes no SMMU (no iommu-map entry for it): give the VM another device"
            ),
            Problem::Bypass(at, why) => write!(f, "{at}: {why}"),
            Problem::Inseparable(at, other) => write!(
                f,
                "{at} cannot be isolated from {other} (same requester ID, or no ACS between them): give both to one VM"
            ),
            Problem::SharedLine { function, other, owner } => write!(
                f,
                "{function} shares its interrupt line with {other} of VM {owner}: move one to another slot"
            ),
            Problem::NoReset(at) => write!(
                f,
                "on-exit = \"restart\", but {at} has no reset: say reset = \"bus-master\" for it if that will do"
            ),
        }
    }
}

/// Checks what `vms` claim of the machine. `confined` tells whether the SMMU sees a function's DMA.
///
/// # Errors
///
/// The first claim that cannot be granted.
pub fn check(
    vms: &[VmConfig<'_>],
    facts: &Machine,
    topology: &Topology,
    confined: impl Fn(&Function) -> Result<(), Bypass>,
) -> Result<Vec<VmFunctions, MAX_VMS>, Refusal> {
    vms.iter()
        .map(|vm| {
            let refuse = |problem| Refusal { vm: vm.name.clone(), problem };
            check_cpus(vm, facts).map_err(refuse)?;
            let mut owned = VmFunctions::new();
            for claim in &vm.functions {
                let function = topology
                    .get(claim.address)
                    .ok_or_else(|| refuse(Problem::NoFunction(claim.address)))?;
                let (smmu, sid) = check_function(vm, function, facts, topology).map_err(refuse)?;
                confined(function).map_err(|why| refuse(Problem::Bypass(function.at, why)))?;
                check_line(vm, function, vms, facts, topology).map_err(refuse)?;
                // The bundle's limit is this vector's.
                let _ = owned.push(Owned { address: claim.address, reset: claim.reset, smmu, sid });
            }
            Ok(owned)
        })
        .collect()
}

fn check_cpus(vm: &VmConfig<'_>, facts: &Machine) -> Result<(), Problem> {
    let cpus = facts.cpus.len();
    match vm.cpus.iter().find(|&&cpu| cpu as usize >= cpus) {
        Some(&cpu) => Err(Problem::NoCpu { cpu, cpus }),
        None => Ok(()),
    }
}

fn owns(vm: &VmConfig<'_>, at: Bdf) -> bool {
    vm.functions.iter().any(|claim| claim.address == at)
}

fn check_function(
    vm: &VmConfig<'_>,
    function: &Function,
    facts: &Machine,
    topology: &Topology,
) -> Result<(Phandle, StreamId), Problem> {
    let at = function.at;
    function.assignable().map_err(|why| Problem::Unassignable(at, why))?;
    if let Some(other) = topology.inseparable(function).find(|other| !owns(vm, other.at)) {
        return Err(Problem::Inseparable(at, other.at));
    }
    let auto = vm.functions.iter().any(|claim| claim.address == at && claim.reset == Reset::Auto);
    if vm.on_exit == OnExit::Restart && auto && !topology.has_reset(function) {
        return Err(Problem::NoReset(at));
    }
    let requester = topology.requester(function);
    facts
        .pcie
        .first()
        .and_then(|host| host.iommu_map.stream(requester))
        .filter(|(phandle, _)| facts.smmus.iter().any(|smmu| smmu.phandle == *phandle))
        .ok_or(Problem::NoStream(at))
}

fn check_line(
    vm: &VmConfig<'_>,
    function: &Function,
    vms: &[VmConfig<'_>],
    facts: &Machine,
    topology: &Topology,
) -> Result<(), Problem> {
    let Some(host) = facts.pcie.first() else { return Ok(()) };
    let Some(line) = topology.interrupt(function, &host.intx) else { return Ok(()) };
    for other in vms.iter().filter(|other| other.name != vm.name) {
        for claim in &other.functions {
            let theirs = topology
                .get(claim.address)
                .and_then(|function| topology.interrupt(function, &host.intx));
            if theirs.is_some_and(|theirs| theirs.intid == line.intid) {
                return Err(Problem::SharedLine {
                    function: function.at,
                    other: claim.address,
                    owner: other.name.clone(),
                });
            }
        }
    }
    Ok(())
}
