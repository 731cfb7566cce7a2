//! Who owns what: the bundle's claims against the machine, before anything is given to anybody.

use core::fmt;

use heapless::Vec;
use platform::bundle::{MAX_FUNCTIONS, MAX_STREAMS, MAX_VMS, OnExit, Reset, VmConfig};
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
    /// The SMMU cannot tell its DMA from that of a function of another VM.
    SharedStream(Bdf, Bdf),
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
            Problem::SharedStream(at, other) => write!(
                f,
                "the SMMU knows {at} and {other} by the same StreamID: give both to one VM"
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
#[inline(never)]
pub fn check(
    vms: &[VmConfig<'_>],
    facts: &Machine,
    topology: &Topology,
    confined: impl Fn(&Function) -> Result<(), Bypass>,
) -> Result<Vec<VmFunctions, MAX_VMS>, Refusal> {
    let mut streams: Vec<(usize, Bdf, Phandle, StreamId), MAX_STREAMS> = Vec::new();
    vms.iter()
        .enumerate()
        .map(|(index, vm)| {
            let refuse = |problem| Refusal { vm: vm.name.clone(), problem };
            check_cpus(vm, facts).map_err(refuse)?;
            let mut owned = VmFunctions::new();
            for claim in &vm.functions {
                let function = topology
                    .get(claim.address)
                    .ok_or_else(|| refuse(Problem::NoFunction(claim.address)))?;
                let (smmu, sid) = check_function(vm, function, facts, topology).map_err(refuse)?;
                let shared = |&&(owner, _, phandle, other): &&(usize, Bdf, Phandle, StreamId)| {
                    owner != index && (phandle, other) == (smmu, sid)
                };
                if let Some(&(_, other, ..)) = streams.iter().find(shared) {
                    return Err(refuse(Problem::SharedStream(function.at, other)));
                }
                // The bundle's limit is this vector's.
                let _ = streams.push((index, function.at, smmu, sid));
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

#[cfg(test)]
mod tests {
    use std::vec::Vec as StdVec;

    use platform::bundle::{Function as Claim, Image};
    use platform::dt;
    use smmu::addr::Ipa;

    use super::*;
    use crate::pci::dma_check;
    use crate::pci::fake::{EDU, Fake, PLATFORM_FEATURES, World, edu, nvme, virtio};

    const TREE: &[u8] = include_bytes!("../../tests/dtb/nested-2cpu.dtb");

    fn at(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn vm(name: &str, cpus: &[u32], functions: &[&str]) -> VmConfig<'static> {
        let image = Image { data: b"image", load: Ipa::new(0x4020_0000) };
        VmConfig {
            name: name.try_into().unwrap(),
            cpus: cpus.iter().copied().collect(),
            memory: 16 << 20,
            kernel: image,
            entry: image.load,
            initrd: None,
            device_tree: Image { data: b"tree", load: Ipa::new(0x4000_0000) },
            on_exit: OnExit::AsAsked,
            stage1: Default::default(),
            dma_at_boot: Default::default(),
            on_crash_kexec: Default::default(),
            reopen: Default::default(),
            functions: functions
                .iter()
                .map(|text| Claim { address: at(text), reset: Reset::Auto })
                .collect(),
        }
    }

    /// A bus with an edu in slots 1, 2 and 5, an NVMe disk in slot 3, and virtio disks with and without
    /// `VIRTIO_F_ACCESS_PLATFORM` in slots 6 and 7.
    fn world() -> World {
        let world = World::new();
        for slot in [1, 2, 5] {
            world.add(None, edu(slot));
        }
        world.add(None, nvme(3));
        world.add(None, virtio(6, PLATFORM_FEATURES));
        world.add(None, virtio(7, 0));
        world
    }

    fn check_all(vms: &[VmConfig<'_>]) -> Result<StdVec<VmFunctions>, Problem> {
        let facts = dt::discover(TREE).unwrap();
        let world = world();
        let topology = world.enumerate();
        check(vms, &facts, &topology, |function| dma_check(&world, function))
            .map(|owned| owned.into_iter().collect())
            .map_err(|refusal| refusal.problem)
    }

    #[test]
    fn a_claim_that_holds_names_its_stream() {
        let owned =
            check_all(&[vm("a", &[0], &["00:01.0", "00:05.0"]), vm("b", &[1], &["00:03.0"])])
                .unwrap();
        let streams: StdVec<_> = owned.iter().flatten().map(|owned| owned.sid).collect();
        assert_eq!(streams, [StreamId(0x08), StreamId(0x28), StreamId(0x18)]);
    }

    #[test]
    fn a_cpu_must_exist() {
        assert_eq!(check_all(&[vm("a", &[2], &[])]), Err(Problem::NoCpu { cpu: 2, cpus: 2 }));
    }

    #[test]
    fn a_function_must_exist_and_be_one_to_give_away() {
        assert_eq!(
            check_all(&[vm("a", &[0], &["00:09.0"])]),
            Err(Problem::NoFunction(at("00:09.0")))
        );
    }

    #[test]
    fn dma_that_passes_the_smmu_by_is_refused() {
        let refused = check_all(&[vm("a", &[0], &["00:07.0"])]);
        assert_eq!(refused, Err(Problem::Bypass(at("00:07.0"), Bypass::NoAccessPlatform)));
        assert!(check_all(&[vm("a", &[0], &["00:06.0"])]).is_ok());
        // A host bridge without iommu-map: no stream at all.
        let mut facts = dt::discover(TREE).unwrap();
        facts.pcie[0].iommu_map = Default::default();
        let topology = world().enumerate();
        let refused = check(&[vm("a", &[0], &["00:01.0"])], &facts, &topology, |_| Ok(()));
        assert_eq!(refused.unwrap_err().problem, Problem::NoStream(at("00:01.0")));
    }

    #[test]
    fn one_vm_owns_an_interrupt_line() {
        // Slots 1 and 5 are on the same line.
        let refused = check_all(&[vm("a", &[0], &["00:01.0"]), vm("b", &[1], &["00:05.0"])]);
        let (function, other) = (at("00:01.0"), at("00:05.0"));
        let owner = "b".try_into().unwrap();
        assert_eq!(refused, Err(Problem::SharedLine { function, other, owner }));
        assert!(check_all(&[vm("a", &[0], &["00:01.0", "00:05.0"])]).is_ok());
    }

    #[test]
    fn functions_of_one_device_without_access_control_stay_together() {
        let world = World::new();
        for function in 0..2 {
            world.add(None, Fake::new(4, function, EDU, 0x00_ff00).pin(1).multi_function());
        }
        let facts = dt::discover(TREE).unwrap();
        let topology = world.enumerate();
        let claim = |functions: &[&str]| {
            check(&[vm("a", &[0], functions)], &facts, &topology, |_| Ok(()))
                .map(|_| ())
                .map_err(|refusal| refusal.problem)
        };
        let (one, other) = (at("00:04.0"), at("00:04.1"));
        assert_eq!(claim(&["00:04.0"]), Err(Problem::Inseparable(one, other)));
        assert_eq!(claim(&["00:04.0", "00:04.1"]), Ok(()));
    }

    #[test]
    fn a_vm_that_restarts_needs_functions_that_forget() {
        let restarting = |functions| {
            let mut config = vm("a", &[0], functions);
            config.on_exit = OnExit::Restart;
            config
        };
        assert_eq!(check_all(&[restarting(&["00:01.0"])]), Err(Problem::NoReset(at("00:01.0"))));
        assert!(check_all(&[restarting(&["00:03.0"])]).is_ok());
        let mut accepted = restarting(&["00:01.0"]);
        accepted.functions[0].reset = Reset::BusMaster;
        assert!(check_all(&[accepted]).is_ok());
    }

    #[test]
    fn a_refusal_says_whose_what_and_what_to_do() {
        let problem = Problem::NoCpu { cpu: 4, cpus: 2 };
        let text = Refusal { vm: "a".try_into().unwrap(), problem }.to_string();
        assert_eq!(text, "VM a: CPU 4 does not exist, there are 2: change `cpus`");
    }
}
