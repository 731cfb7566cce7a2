//! A device tree as firmware or a boot loader may pass it: the machine that it describes, or a refusal.

use std::collections::BTreeSet;

use platform::dt::{Interrupt, Machine, PA_BITS, Range, console, discover};
use platform::pcie::{Bdf, Pin};

/// Discovers the machine.
pub fn run(bytes: &[u8]) {
    let result = discover(bytes);
    let console = console(bytes);
    // What follows the tree in memory is none of it.
    let mut more = bytes.to_vec();
    more.extend([0xa5; 64]);
    if bytes.len() >= 8 && result.is_ok() {
        assert_eq!(discover(&more), result);
    }
    match result {
        Ok(machine) => {
            check(&machine);
            refuses_twice_the_same_memory(bytes, &machine);
            if let Some(uart) = machine.uarts.first() {
                assert_eq!(console.map(|console| console.range), Some(uart.range));
            }
        }
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty() && !refusal.problem.remedy().is_empty());
        }
    }
}

fn is_inside(range: Range) {
    assert!(range.size > 0 && range.base.raw() < 1 << PA_BITS, "{range:x?}");
    assert!(range.size <= (1 << PA_BITS) - range.base.raw(), "{range:x?}");
}

fn is_private(Interrupt { intid, .. }: Interrupt) {
    assert!((16..32).contains(&intid), "{intid}");
}

fn is_shared(Interrupt { intid, .. }: Interrupt) {
    assert!((32..1020).contains(&intid), "{intid}");
}

/// What whoever reads a [`Machine`] relies on.
fn check(machine: &Machine) {
    assert!(!machine.memory.is_empty() && !machine.cpus.is_empty() && !machine.smmus.is_empty());
    machine.memory.iter().copied().for_each(is_inside);
    for pair in machine.memory.windows(2) {
        assert!(pair[0].base < pair[1].base && !pair[0].overlaps(pair[1]), "{pair:x?}");
    }
    for cpu in &machine.cpus {
        assert_eq!(cpu.mpidr & !0xff_00ff_ffff, 0, "{cpu:x?}");
    }
    let different: BTreeSet<u64> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
    assert_eq!(different.len(), machine.cpus.len(), "two CPUs are one: {:x?}", machine.cpus);

    is_inside(machine.gic.distributor);
    for run in &machine.gic.redistributors {
        is_inside(run.range);
        assert_ne!(run.stride, Some(0));
    }
    machine.gic.its.iter().for_each(|its| is_inside(its.range));
    is_private(machine.gic.maintenance);
    let timers = &machine.timers;
    [timers.physical, timers.virtual_, timers.hypervisor].into_iter().for_each(is_private);
    [timers.secure_physical, timers.hypervisor_virtual].into_iter().flatten().for_each(is_private);
    for uart in &machine.uarts {
        is_inside(uart.range);
        uart.interrupt.into_iter().for_each(is_shared);
    }
    for smmu in &machine.smmus {
        is_inside(smmu.range);
        assert!(smmu.range.size >= 0x2_0000);
        is_shared(smmu.interrupts.eventq());
        is_shared(smmu.interrupts.gerror());
    }
    for host in &machine.pcie {
        is_inside(host.ecam);
        assert!(host.first_bus <= host.last_bus);
        for window in &host.windows {
            is_inside(window.cpu);
            assert!(window.pci.checked_add(window.cpu.size).is_some(), "{window:x?}");
        }
        for id in (0..=u16::MAX).step_by(251).chain([0xff, 0xff00, u16::MAX]) {
            let function = Bdf::from_requester_id(id);
            if let Some(at) = host.config_space(function) {
                assert!(
                    at >= host.ecam.base
                        && at.raw() + 0x1000 <= host.ecam.base.raw() + host.ecam.size
                );
            }
            if let Some((phandle, _)) = host.iommu_map.stream(function) {
                assert!(machine.smmus.iter().any(|smmu| smmu.phandle == phandle), "{phandle:?}");
            }
            _ = host.msi_map.device_id(function);
            for pin in Pin::ALL {
                host.intx.interrupt(function, pin).into_iter().for_each(is_shared);
            }
        }
    }
    machine.virtio_mmio.iter().copied().for_each(is_inside);
    machine.initrd.into_iter().for_each(is_inside);
}

/// The same tree with one region of memory where another one is describes no machine.
fn refuses_twice_the_same_memory(tree: &[u8], machine: &Machine) {
    let cells = |range: &Range| [range.base.raw().to_be_bytes(), range.size.to_be_bytes()].concat();
    if let [first, second, ..] = &machine.memory[..] {
        let at = tree.windows(16).position(|window| window == cells(second));
        if let Some(at) = at.filter(|_| cells(first) != cells(second)) {
            let mut twice = tree.to_vec();
            twice[at..at + 16].copy_from_slice(&cells(first));
            // Unless those 16 bytes were something else by chance, and the second region is still there.
            let still = discover(&twice).is_ok_and(|machine| !machine.memory.contains(second));
            assert!(!still, "{first:x?} twice");
        }
    }
}
