//! Captured trees (`tests/dtb/README.md`), and the same trees made odd in one place each.

use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};
use proptest::prelude::*;
use smmu::addr::StreamId;

use std::string::String;
use std::vec::Vec;

use super::*;
use crate::pcie::Pin;

macro_rules! captured {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/dtb/", $name, ".dtb")).as_slice()
    };
}

const NESTED: &[u8] = captured!("nested-2cpu");
const MIB: u64 = 1 << 20;

fn range(base: u64, size: u64) -> Range {
    Range { base: Pa::new(base), size }
}

const fn edge(intid: u32) -> Interrupt {
    Interrupt { intid, trigger: Trigger::Edge }
}

const fn level(intid: u32) -> Interrupt {
    Interrupt { intid, trigger: Trigger::Level }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

#[test]
fn every_fact_of_qemus_machine_is_found() {
    let machine = discover(NESTED).unwrap();
    assert_eq!(machine.memory, [range(0x4000_0000, 1024 * MIB)]);
    assert_eq!(machine.reserved, []);
    assert_eq!(machine.cpus, [Cpu { mpidr: 0 }, Cpu { mpidr: 1 }]);
    assert_eq!(machine.psci, Conduit::Smc);
    assert_eq!(machine.gic.distributor, range(0x0800_0000, 0x1_0000));
    assert_eq!(
        machine.gic.redistributors,
        [Redistributors { range: range(0x080a_0000, 0xf6_0000), stride: None }]
    );
    assert_eq!(machine.gic.its.len(), 1);
    assert_eq!(machine.gic.its[0].range, range(0x0808_0000, 0x2_0000));
    assert_eq!(machine.gic.maintenance, level(25));
    assert_eq!(
        machine.timers,
        Timers {
            secure_physical: Some(level(29)),
            physical: level(30),
            virtual_: level(27),
            hypervisor: level(26),
            hypervisor_virtual: None,
        }
    );
    let uart = |base, intid| Uart { range: range(base, 0x1000), interrupt: Some(level(intid)) };
    assert_eq!(machine.uarts, [uart(0x0900_0000, 33), uart(0x0904_0000, 40)]);
    assert_eq!(machine.virtio_mmio.len(), 32);
    assert_eq!(machine.virtio_mmio[31], range(0x0a00_3e00, 0x200));
    assert_eq!(machine.initrd, None);
    assert_eq!(machine.bootargs, "");

    let [smmu] = machine.smmus[..] else { panic!("one SMMU") };
    assert_eq!(smmu.range, range(0x0905_0000, 0x2_0000));
    assert!(smmu.dma_coherent);
    assert_eq!(
        smmu.interrupts,
        SmmuInterrupts::Separate {
            eventq: edge(106),
            gerror: edge(109),
            cmdq_sync: Some(edge(108)),
            priq: Some(edge(107)),
        }
    );

    let [host] = &machine.pcie[..] else { panic!("one host bridge") };
    assert_eq!(host.ecam, range(0x40_1000_0000, 256 * MIB));
    assert_eq!((host.first_bus, host.last_bus), (0, 255));
    assert!(host.dma_coherent);
    let window =
        |kind, pci, base, size| Window { kind, prefetchable: false, pci, cpu: range(base, size) };
    assert_eq!(
        host.windows,
        [
            window(WindowKind::Io, 0, 0x3eff_0000, 0x1_0000),
            window(WindowKind::Mem32, 0x1000_0000, 0x1000_0000, 0x2eff_0000),
            window(WindowKind::Mem64, 0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000),
        ]
    );
    assert_eq!(host.config_space(bdf("01:02.3")), Some(Pa::new(0x40_1011_3000)));
    assert_eq!(host.iommu_map.stream(bdf("01:02.3")), Some((smmu.phandle, StreamId(0x113))));
    assert_eq!(
        host.msi_map.device_id(bdf("ff:1f.7")),
        Some((machine.gic.its[0].phandle.unwrap(), 0xffff))
    );
    // SPI 3 to 6, swizzled by slot; after four slots the wiring repeats.
    assert_eq!(host.intx.interrupt(bdf("00:00.0"), Pin::A), Some(level(35)));
    assert_eq!(host.intx.interrupt(bdf("00:02.0"), Pin::A), Some(level(37)));
    assert_eq!(host.intx.interrupt(bdf("00:07.5"), Pin::C), Some(level(36)));
}

/// Years apart, and the same machine: only how an interrupt line or a phandle is numbered may differ.
#[test]
fn every_version_of_qemu_describes_the_same_machine() {
    let now = discover(NESTED).unwrap();
    // The second UART was the secure world's alone.
    for (version, tree, uarts) in
        [("7.2", captured!("qemu-7.2"), 1), ("11.1", captured!("qemu-11.1"), 2)]
    {
        let other = discover(tree).unwrap_or_else(|refusal| panic!("{version}: {refusal}"));
        assert_eq!(other.memory, [range(0x4000_0000, 512 * MIB)], "{version}");
        assert_eq!((&other.cpus, other.psci), (&now.cpus, now.psci), "{version}");
        let (ours, theirs) = (&now.gic, &other.gic);
        assert_eq!(theirs.distributor, ours.distributor, "{version}");
        assert_eq!(theirs.redistributors, ours.redistributors, "{version}");
        assert_eq!(
            (theirs.its[0].range, theirs.maintenance),
            (ours.its[0].range, ours.maintenance)
        );
        assert_eq!((other.timers.virtual_, other.timers.hypervisor), (level(27), level(26)));
        assert_eq!(other.uarts.len(), uarts, "{version}");
        assert!(other.uarts.iter().all(|uart| now.uarts.contains(uart)), "{version}");
        assert_eq!(other.smmus[0].range, now.smmus[0].range, "{version}");
        assert_eq!(other.smmus[0].interrupts, now.smmus[0].interrupts, "{version}");
        let (ours, theirs) = (&now.pcie[0], &other.pcie[0]);
        assert_eq!((theirs.ecam, &theirs.windows), (ours.ecam, &ours.windows), "{version}");
        for function in ["00:01.0", "00:1f.7", "ff:00.0"].map(bdf) {
            let stream = |host: &PcieHost| host.iommu_map.stream(function).map(|(_, sid)| sid);
            assert_eq!(stream(theirs), stream(ours), "{version}: {function}");
            for pin in Pin::ALL {
                let line = |host: &PcieHost| host.intx.interrupt(function, pin);
                assert_eq!(line(theirs), line(ours), "{version}: {function}");
            }
        }
    }
}

#[test]
fn cpus_and_memory_are_counted() {
    for (blob, cpus, memory) in [
        (captured!("nested-1cpu"), 1, 512),
        (captured!("nested-4cpu"), 4, 2048),
        (captured!("nested-8cpu"), 8, 6144),
        (captured!("max"), 2, 512),
        (captured!("stage2"), 2, 512),
    ] {
        let machine = discover(blob).unwrap();
        let mpidrs: Vec<u64> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        assert_eq!(mpidrs, (0..cpus).collect::<Vec<_>>());
        assert_eq!(machine.memory, [range(0x4000_0000, memory * MIB)]);
        assert_eq!(machine.smmus.len(), 1);
    }
}

#[test]
fn memory_is_sorted() {
    let machine = discover(captured!("numa")).unwrap();
    assert_eq!(machine.memory, [range(0x4000_0000, 512 * MIB), range(0x6000_0000, 512 * MIB)]);
}

#[test]
fn memory_may_be_of_a_kind_that_is_unknown() {
    let machine = discover(&with("/memory@40000000", "compatible", "vendor,dram")).unwrap();
    assert_eq!(machine.memory, [range(0x4000_0000, 1024 * MIB)]);
}

#[test]
fn a_machine_without_its_has_no_device_ids() {
    let machine = discover(captured!("no-its")).unwrap();
    assert!(machine.gic.its.is_empty());
    assert_eq!(machine.pcie[0].msi_map.device_id(bdf("00:02.0")), None);
    assert!(machine.pcie[0].iommu_map.stream(bdf("00:02.0")).is_some());
}

#[test]
fn a_small_configuration_space_has_few_buses() {
    let machine = discover(captured!("low-ecam")).unwrap();
    let host = &machine.pcie[0];
    assert_eq!(host.ecam, range(0x3f00_0000, 16 * MIB));
    assert_eq!((host.first_bus, host.last_bus), (0, 15));
    assert_eq!(host.config_space(bdf("0f:1f.7")), Some(Pa::new(0x3fff_f000)));
    assert_eq!(host.config_space(bdf("10:00.0")), None);
}

#[test]
fn the_boot_loaders_words_are_found() {
    let machine = discover(captured!("initrd")).unwrap();
    assert_eq!(machine.initrd, Some(range(0x4800_0000, 0x1000)));
    assert_eq!(machine.bootargs, "log-level=debug");
}

#[test]
fn unusable_machines_are_refused_with_the_remedy() {
    for (blob, problem, remedy) in [
        (captured!("gicv2"), Problem::GicV2, "gic-version=3"),
        (captured!("no-iommu"), Problem::NoSmmu, "iommu=smmuv3"),
        (captured!("no-el2"), Problem::NoMaintenanceInterrupt, "virtualization=on"),
    ] {
        let refusal = discover(blob).unwrap_err();
        assert_eq!(refusal.problem, problem);
        assert!(refusal.to_string().contains(remedy), "{refusal}");
        assert_eq!(console(blob).unwrap().range.base, Pa::new(0x0900_0000));
    }
    assert_eq!(discover(captured!("gicv2")).unwrap_err().node, "/intc@8000000");
}

#[test]
fn other_bytes_may_follow_the_tree() {
    let mut blob = NESTED.to_vec();
    blob.resize(blob.len() + 4096, 0xff);
    assert_eq!(discover(&blob), discover(NESTED));
    assert_eq!(total_size(*NESTED.first_chunk().unwrap()), Ok(NESTED.len() as u32));
}

// ---- the same tree, changed in one place ----

fn node_at<'t>(tree: &'t mut DeviceTree, path: &str) -> &'t mut DeviceTreeNode {
    tree.find_node_mut(path).unwrap_or_else(|| panic!("no node {path}"))
}

fn changed(change: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(NESTED).unwrap());
    change(&mut tree);
    tree.to_dtb()
}

/// A value of cells.
struct Cells<'a>(&'a [u32]);

impl ToPropertyValue for Cells<'_> {
    fn property_value_len(&self) -> usize {
        self.0.len() * 4
    }

    fn write_property_value(&self, buffer: &mut [u8]) {
        for (bytes, cell) in buffer.chunks_exact_mut(4).zip(self.0) {
            bytes.copy_from_slice(&cell.to_be_bytes());
        }
    }
}

fn set(node: &mut DeviceTreeNode, property: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new(property, value).unwrap());
}

fn with(path: &str, property: &str, value: impl ToPropertyValue) -> Vec<u8> {
    changed(|tree| set(node_at(tree, path), property, value))
}

fn without(path: &str, property: &str) -> Vec<u8> {
    changed(|tree| {
        node_at(tree, path).remove_property(property).unwrap();
    })
}

fn without_node(parent: &str, name: &str) -> Vec<u8> {
    changed(|tree| {
        node_at(tree, parent).remove_child(name).unwrap();
    })
}

const GIC: &str = "/intc@8000000";
const SMMU: &str = "/smmuv3@9050000";
const PCIE: &str = "/pcie@10000000";
const UART: &str = "/pl011@9000000";

fn phandle_of(path: &str) -> u32 {
    let fdt = Fdt::new(NESTED).unwrap();
    fdt.find_node(path).unwrap().property("phandle").unwrap().value_as().unwrap()
}

/// A machine without anything that it could do without, and no tree of QEMU's: so short that an interpreter has time
/// for it.
#[test]
fn the_smallest_machine_is_found() {
    /// Name, `compatible` if it has one, properties of cells.
    type Node = (&'static str, &'static str, &'static [(&'static str, &'static [u32])]);
    const NODES: [Node; 7] = [
        ("psci", "arm,psci-1.0", &[]),
        ("timer", "arm,armv8-timer", &[("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])]),
        (
            "intc@8000000",
            "arm,gic-v3",
            &[
                ("phandle", &[1]),
                ("#interrupt-cells", &[3]),
                ("interrupt-controller", &[]),
                ("interrupts", &[1, 9, 4]),
                ("reg", &[0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x2_0000]),
            ],
        ),
        ("pl011@9000000", "arm,pl011", &[("interrupts", &[0, 1, 4]), ("reg", UART_AT)]),
        (
            "smmuv3@9050000",
            "arm,smmu-v3",
            &[
                ("phandle", &[2]),
                ("#iommu-cells", &[1]),
                ("dma-coherent", &[]),
                ("interrupts", &[0, 74, 1, 0, 77, 1]),
                ("reg", &[0, 0x0905_0000, 0, 0x2_0000]),
            ],
        ),
        ("memory@40000000", "", &[("reg", &[0, 0x4000_0000, 0, 0x2000_0000])]),
        ("cpus", "", &[("#address-cells", &[1]), ("#size-cells", &[0])]),
    ];
    const UART_AT: &[u32] = &[0, 0x0900_0000, 0, 0x1000];
    let mut tree = DeviceTree::new();
    for (property, cells) in [("#address-cells", 2), ("#size-cells", 2), ("interrupt-parent", 1)] {
        set(&mut tree.root, property, Cells(&[cells]));
    }
    for (name, compatible, properties) in NODES {
        let mut node = DeviceTreeNode::new(name).unwrap();
        for (property, cells) in properties {
            set(&mut node, property, Cells(cells));
        }
        match name {
            "psci" => set(&mut node, "method", "smc"),
            "smmuv3@9050000" => set(&mut node, "interrupt-names", "eventq\0gerror"),
            "memory@40000000" => set(&mut node, "device_type", "memory"),
            "cpus" => {
                let mut cpu = DeviceTreeNode::new("cpu@0").unwrap();
                set(&mut cpu, "device_type", "cpu");
                set(&mut cpu, "reg", Cells(&[0]));
                node.add_child(cpu);
            }
            _ => {}
        }
        if !compatible.is_empty() {
            set(&mut node, "compatible", compatible);
        }
        tree.root.add_child(node);
    }
    let machine = discover(&tree.to_dtb()).unwrap();
    assert_eq!(machine.memory, [range(0x4000_0000, 512 * MIB)]);
    assert_eq!((&machine.cpus[..], machine.psci), (&[Cpu { mpidr: 0 }][..], Conduit::Smc));
    assert_eq!(machine.gic.distributor, range(0x0800_0000, 0x1_0000));
    assert_eq!(machine.gic.maintenance, level(25));
    assert_eq!(machine.timers.hypervisor, level(26));
    assert_eq!(machine.uarts[0].range, range(0x0900_0000, 0x1000));
    assert_eq!(machine.smmus[0].range, range(0x0905_0000, 0x2_0000));
    assert!(machine.pcie.is_empty() && machine.gic.its.is_empty());
    tree.root.remove_child("smmuv3@9050000").unwrap();
    assert_eq!(discover(&tree.to_dtb()).unwrap_err().problem, Problem::NoSmmu);
}

#[test]
fn a_missing_node_is_named() {
    let missing = |blob: Vec<u8>| discover(&blob).unwrap_err().problem;
    assert_eq!(missing(without_node("/", "memory@40000000")), Problem::NoNode("memory"));
    assert_eq!(missing(without_node("/", "psci")), Problem::NoNode("PSCI node"));
    assert_eq!(missing(without_node("/", "timer")), Problem::NoNode("generic timer"));
    assert_eq!(missing(without_node("/", "intc@8000000")), Problem::NoNode("GICv3"));
    assert_eq!(missing(without_node("/", "cpus")), Problem::NoNode("CPU"));
    assert_eq!(missing(without_node("/", "smmuv3@9050000")), Problem::NoSmmu);
    assert_eq!(missing(with(SMMU, "status", "disabled")), Problem::NoSmmu);
}

#[test]
fn an_odd_node_is_named_with_its_property() {
    let gic = phandle_of(GIC);
    let foreign = gic + 100;
    let malformed = |property, why| Problem::Malformed { property, why };
    let cases: &[(Vec<u8>, &str, Problem)] = &[
        (without(GIC, "phandle"), GIC, Problem::NoProperty("phandle")),
        (
            with(GIC, "#interrupt-cells", 2_u32),
            GIC,
            malformed("#interrupt-cells", "it is neither 3 nor 4"),
        ),
        (
            with(GIC, "#redistributor-regions", 2_u32),
            GIC,
            malformed("reg", "it names fewer redistributor regions than there are"),
        ),
        (
            with(GIC, "redistributor-stride", 0x1_0000_u64),
            GIC,
            malformed("redistributor-stride", "it is no multiple of 64 KiB from 128 KiB on"),
        ),
        (without(GIC, "interrupts"), GIC, Problem::NoMaintenanceInterrupt),
        (with(GIC, "status", 7_u32), "/", Problem::NoNode("GICv3")),
        (
            with("/timer", "interrupts", Cells(&[1, 13, 4, 1, 14, 4, 1, 11, 4])),
            "/timer",
            malformed("interrupts", "one of the timer's interrupts is missing"),
        ),
        (
            with("/timer", "interrupts", Cells(&[1, 13, 4, 1, 14])),
            "/timer",
            malformed("interrupts", "an interrupt is cut short"),
        ),
        (with("/timer", "interrupt-parent", foreign), "/timer", Problem::ForeignInterrupt),
        (
            with("/timer", "interrupts", Cells(&[1, 13, 4, 1, 14, 4, 1, 11, 4, 0, 14, 4])),
            "/timer",
            malformed("interrupts", "an interrupt is no PPI"),
        ),
        (
            with(GIC, "interrupts", Cells(&[0, 9, 4])),
            GIC,
            malformed("interrupts", "an interrupt is no PPI"),
        ),
        (
            with(UART, "interrupts", Cells(&[1, 9, 4])),
            UART,
            malformed("interrupts", "an interrupt is no SPI"),
        ),
        (
            with(SMMU, "interrupts", Cells(&[1, 9, 4, 1, 9, 4, 1, 9, 4, 1, 9, 4])),
            SMMU,
            malformed("interrupts", "an interrupt is no SPI"),
        ),
        (
            with(UART, "interrupts", Cells(&[2, 1, 4])),
            UART,
            malformed("interrupts", "an interrupt is no SPI"),
        ),
        (
            with("/psci", "method", "wave"),
            "/psci",
            malformed("method", "it is neither smc nor hvc"),
        ),
        (with("/psci", "compatible", "arm,psci"), "/psci", Problem::PsciTooOld),
        (without("/cpus/cpu@1", "enable-method"), "/cpus/cpu@1", Problem::NotPsci),
        (
            with("/cpus/cpu@1", "reg", 0_u32),
            "/cpus/cpu@1",
            Problem::Twice("CPU with this affinity"),
        ),
        (
            with("/cpus/cpu@1", "reg", 0x8000_0001_u32),
            "/cpus/cpu@1",
            malformed("reg", "it is not the affinity of a CPU"),
        ),
        (
            with(UART, "interrupts", Cells(&[0, 1, 8])),
            UART,
            malformed("interrupts", "an interrupt's trigger is none that the GIC has"),
        ),
        (
            with(UART, "interrupts", Cells(&[0, 988, 4])),
            UART,
            malformed("interrupts", "an interrupt's number is too large"),
        ),
        (with(UART, "reg", Cells(&[0, 0x900_0000, 0, 0])), UART, malformed("reg", "its size is 0")),
        (
            with(UART, "reg", Cells(&[0, 0x900_0000, 0])),
            UART,
            malformed("reg", "it is not a list of address and size"),
        ),
        (
            with(UART, "reg", Cells(&[u32::MAX, 0xffff_f000, 0, 0x1001])),
            UART,
            malformed("reg", "it reaches past the end of the address space"),
        ),
        (without(UART, "reg"), UART, Problem::NoProperty("reg")),
        (
            with(SMMU, "reg", Cells(&[0, 0x905_0000, 0, 0x1_0000])),
            SMMU,
            Problem::RegistersTooSmall { needed: 0x2_0000 },
        ),
        (with(SMMU, "#iommu-cells", 2_u32), SMMU, malformed("#iommu-cells", "it is not 1")),
        (
            without(SMMU, "interrupt-names"),
            SMMU,
            malformed("interrupt-names", "it names neither combined nor eventq and gerror"),
        ),
        (
            with(PCIE, "iommu-map", Cells(&[0, foreign, 0, 0x1_0000])),
            PCIE,
            Problem::Dangling { property: "iommu-map", to: "an SMMUv3" },
        ),
        (
            with(PCIE, "iommu-map", Cells(&[0, foreign, 0])),
            PCIE,
            malformed("iommu-map", "an entry is cut short"),
        ),
        (
            with(PCIE, "iommu-map", Cells(&[0, 1, u32::MAX, 2])),
            PCIE,
            malformed("iommu-map", "an entry is empty or reaches past the last identifier"),
        ),
        (
            with(PCIE, "iommu-map", Cells(&[0, 1, 0, 0x100, 0xff, 1, 0x1000, 1])),
            PCIE,
            malformed("iommu-map", "two entries overlap"),
        ),
        (
            with(PCIE, "reg", Cells(&[0x40, 0x1000_0000, 0, 0xfff_0000])),
            PCIE,
            Problem::RegistersTooSmall { needed: 0x1000_0000 },
        ),
        (
            with(PCIE, "bus-range", Cells(&[2, 1])),
            PCIE,
            malformed("bus-range", "it is not a first and a last bus number"),
        ),
        (
            with(PCIE, "ranges", Cells(&[0x200_0000, 0, 0x8000_0000, 0, 0, 0, 0x8000_0001])),
            PCIE,
            malformed("ranges", "a window is empty or reaches past its bus addresses"),
        ),
        (
            with(PCIE, "ranges", Cells(&[0, 0, 0, 0, 0, 0, 0x1000])),
            PCIE,
            malformed("ranges", "a window is for configuration space"),
        ),
        (without(PCIE, "ranges"), PCIE, Problem::NoProperty("ranges")),
        (
            with(PCIE, "dma-ranges", Cells(&[0x300_0000, 0, 0, 0, 0x4000_0000, 0, 0x1000])),
            PCIE,
            Problem::DmaOffset,
        ),
        (
            with(PCIE, "interrupt-map", Cells(&[0, 0, 0, 1, foreign, 0, 0, 0, 3, 4])),
            PCIE,
            Problem::ForeignInterrupt,
        ),
        (
            with(PCIE, "interrupt-map", Cells(&[0, 0, 0, 1, gic, 0, 0, 1, 3, 4])),
            PCIE,
            malformed("interrupt-map", "an interrupt is no SPI"),
        ),
        (
            with(PCIE, "interrupt-map", Cells(&[0, 0, 0, 1, gic, 0, 0, 0, 3])),
            PCIE,
            malformed("interrupt-map", "an interrupt is cut short"),
        ),
        (
            with("/memory@40000000", "reg", Cells(&[0, 0, 0, 0x2000, 0, 0x1000, 0, 0x1000])),
            "/memory@40000000",
            malformed("reg", "two memory regions overlap"),
        ),
        (
            with("/chosen", "linux,initrd-start", 0x4800_0000_u32),
            "/chosen",
            Problem::NoProperty("linux,initrd-end"),
        ),
        (
            with("/", "#address-cells", 4_u32),
            "/",
            malformed("#address-cells", "no address or size here can have that many cells"),
        ),
    ];
    for (blob, node, problem) in cases {
        let refusal = discover(blob).expect_err(node);
        assert_eq!((refusal.node.as_str(), &refusal.problem), (*node, problem));
    }
}

#[test]
fn an_inconsistent_initrd_is_refused() {
    let blob = changed(|tree| {
        let chosen = node_at(tree, "/chosen");
        set(chosen, "linux,initrd-start", 0x4800_0000_u32);
        set(chosen, "linux,initrd-end", 0x4800_0000_u64);
    });
    let why = "it is not above linux,initrd-start";
    assert_eq!(
        discover(&blob).unwrap_err().problem,
        Problem::Malformed { property: "linux,initrd-end", why }
    );
}

#[test]
fn both_widths_of_initrd_addresses_are_read() {
    let blob = changed(|tree| {
        let chosen = node_at(tree, "/chosen");
        set(chosen, "linux,initrd-start", 0x4800_0000_u32);
        set(chosen, "linux,initrd-end", 0x1_0000_0000_u64);
    });
    assert_eq!(discover(&blob).unwrap().initrd, Some(range(0x4800_0000, 0xb800_0000)));
}

#[test]
fn what_is_reserved_is_found_in_both_places() {
    let blob = changed(|tree| {
        tree.memory_reservations.push(MemoryReservation::new(0x4000_0000, 0x1000));
        let mut region = DeviceTreeNode::new("firmware@50000000").unwrap();
        set(&mut region, "reg", Cells(&[0, 0x5000_0000, 0, 0x20_0000]));
        let mut dynamic = DeviceTreeNode::new("linux,cma").unwrap();
        set(&mut dynamic, "size", Cells(&[0, 0x40_0000]));
        let mut reserved = DeviceTreeNode::new("reserved-memory").unwrap();
        set(&mut reserved, "#address-cells", 2_u32);
        set(&mut reserved, "#size-cells", 2_u32);
        set(&mut reserved, "ranges", Cells(&[]));
        reserved.add_child(region);
        reserved.add_child(dynamic);
        tree.root.add_child(reserved);
    });
    assert_eq!(
        discover(&blob).unwrap().reserved,
        [range(0x4000_0000, 0x1000), range(0x5000_0000, 0x20_0000)]
    );
}

#[test]
fn a_cpu_that_failed_is_no_cpu_and_one_that_waits_is() {
    let failed = discover(&with("/cpus/cpu@1", "status", "fail-selftest")).unwrap();
    assert_eq!(failed.cpus, [Cpu { mpidr: 0 }]);
    let waiting = discover(&with("/cpus/cpu@1", "status", "disabled")).unwrap();
    assert_eq!(waiting.cpus.len(), 2);
}

#[test]
fn affinities_of_two_cells_are_read() {
    let blob = changed(|tree| {
        set(node_at(tree, "/cpus"), "#address-cells", 2_u32);
        set(node_at(tree, "/cpus/cpu@0"), "reg", 0_u64);
        set(node_at(tree, "/cpus/cpu@1"), "reg", 0x1_0000_0300_u64);
    });
    assert_eq!(discover(&blob).unwrap().cpus[1], Cpu { mpidr: 0x1_0000_0300 });
}

#[test]
fn the_console_comes_first_then_the_aliases() {
    let bases = |blob: &[u8]| {
        let uarts = discover(blob).unwrap().uarts;
        let bases: Vec<u64> = uarts.iter().map(|uart| uart.range.base.raw()).collect();
        assert_eq!(console(blob).unwrap().range.base.raw(), bases[0]);
        bases
    };
    let (first, second) = (0x0900_0000, 0x0904_0000);
    assert_eq!(bases(NESTED), [first, second]);
    // With options, by alias, and without unit address.
    for stdout in ["/pl011@9040000:115200n8", "serial1:115200", "serial1"] {
        assert_eq!(bases(&with("/chosen", "stdout-path", stdout)), [second, first]);
    }
    let swapped = changed(|tree| {
        node_at(tree, "/chosen").remove_property("stdout-path");
        set(node_at(tree, "/aliases"), "serial0", "/pl011@9040000");
        set(node_at(tree, "/aliases"), "serial1", "/pl011@9000000");
    });
    assert_eq!(bases(&swapped), [second, first]);
    let disabled = with(UART, "status", "disabled");
    assert_eq!(bases(&disabled), [second]);
}

#[test]
fn registers_behind_a_bus_are_translated() {
    let moved = |ranges: &[u32]| {
        changed(|tree| {
            let mut uart = tree.root.remove_child("pl011@9040000").unwrap();
            set(&mut uart, "reg", Cells(&[0x4_0000, 0x1000]));
            let mut bus = DeviceTreeNode::new("soc").unwrap();
            set(&mut bus, "#address-cells", 1_u32);
            set(&mut bus, "#size-cells", 1_u32);
            set(&mut bus, "ranges", Cells(ranges));
            bus.add_child(uart);
            tree.root.add_child(bus);
        })
    };
    let found = discover(&moved(&[0, 1, 0x0900_0000, 0x10_0000])).unwrap();
    assert_eq!(found.uarts[1].range, range(0x1_0904_0000, 0x1000));
    let found = discover(&moved(&[])).unwrap();
    assert_eq!(found.uarts[1].range, range(0x4_0000, 0x1000));
    let refusal = discover(&moved(&[0, 1, 0x0900_0000, 0x4_0fff])).unwrap_err();
    assert_eq!(
        (refusal.node.as_str(), refusal.problem),
        ("/soc/pl011@9040000", Problem::Untranslatable)
    );
}

#[test]
fn coherency_is_inherited_until_it_is_denied() {
    // The root of QEMU's tree is coherent.
    assert!(discover(&without(SMMU, "dma-coherent")).unwrap().smmus[0].dma_coherent);
    let denied = changed(|tree| {
        node_at(tree, SMMU).remove_property("dma-coherent").unwrap();
        set(node_at(tree, SMMU), "dma-noncoherent", Cells(&[]));
    });
    assert!(!discover(&denied).unwrap().smmus[0].dma_coherent);
}

#[test]
fn interrupts_are_read_by_name_and_through_extended_lists() {
    let gic = phandle_of(GIC);
    let blob = changed(|tree| {
        let smmu = node_at(tree, SMMU);
        smmu.remove_property("interrupts");
        set(smmu, "interrupts-extended", Cells(&[gic, 0, 80, 4, gic, 0, 81, 1]));
        set(smmu, "interrupt-names", b"gerror\0eventq\0".as_slice());
        set(
            node_at(tree, "/timer"),
            "interrupt-names",
            b"hyp-phys\0virt\0phys\0hyp-virt\0".as_slice(),
        );
        set(
            node_at(tree, "/timer"),
            "interrupts",
            Cells(&[1, 10, 4, 1, 11, 4, 1, 14, 8, 1, 12, 4]),
        );
    });
    let machine = discover(&blob).unwrap();
    assert_eq!(
        machine.smmus[0].interrupts,
        SmmuInterrupts::Separate {
            eventq: edge(113),
            gerror: level(112),
            cmdq_sync: None,
            priq: None
        }
    );
    assert_eq!(
        machine.timers,
        Timers {
            secure_physical: None,
            physical: level(30),
            virtual_: level(27),
            hypervisor: level(26),
            hypervisor_virtual: Some(level(28)),
        }
    );

    let blob = with(SMMU, "interrupt-names", b"combined\0".as_slice());
    let combined = discover(&blob).unwrap().smmus[0].interrupts;
    assert_eq!(combined, SmmuInterrupts::Combined(edge(106)));
    assert_eq!((combined.eventq(), combined.gerror()), (edge(106), edge(106)));
}

#[test]
fn interrupts_that_a_bus_passes_on_are_followed() {
    let gic = phandle_of(GIC);
    let moved = |mask: &[u32], interrupt: u32| {
        changed(|tree| {
            let mut uart = tree.root.remove_child("pl011@9040000").unwrap();
            set(&mut uart, "interrupts", interrupt);
            let mut inner = DeviceTreeNode::new("bus").unwrap();
            let mut outer = DeviceTreeNode::new("motherboard").unwrap();
            for bus in [&mut inner, &mut outer] {
                set(bus, "#address-cells", 2_u32);
                set(bus, "#size-cells", 2_u32);
                set(bus, "ranges", Cells(&[]));
            }
            set(&mut outer, "#interrupt-cells", 1_u32);
            set(&mut outer, "interrupt-map-mask", Cells(mask));
            let map = [0, 0, 4, gic, 0, 0, 0, 40, 4, 0, 0, 5, gic, 0, 0, 0, 41, 1];
            set(&mut outer, "interrupt-map", Cells(&map));
            inner.add_child(uart);
            outer.add_child(inner);
            tree.root.add_child(outer);
        })
    };
    let second = |blob: Vec<u8>| discover(&blob).map(|machine| machine.uarts[1].interrupt);
    assert_eq!(second(moved(&[0, 0, 63], 4)), Ok(Some(level(72))));
    assert_eq!(second(moved(&[0, 0, 63], 5)), Ok(Some(edge(73))));
    assert_eq!(second(moved(&[0, 0, 63], 69)), Ok(Some(edge(73))));
    let refusal = second(moved(&[0, 0, 63], 6)).unwrap_err();
    // The path's end is kept.
    assert_eq!(refusal.node, "/motherboard/bus/pl011@9040000");
    let why = "the bus above has no such interrupt";
    assert_eq!(refusal.problem, Problem::Malformed { property: "interrupts", why });
    let refusal = second(moved(&[0, 0x1000, 63], 4)).unwrap_err();
    assert_eq!(refusal.node, "/motherboard");
}

#[test]
fn a_long_path_keeps_its_end() {
    let blob = changed(|tree| {
        let mut node = tree.root.remove_child("pl011@9040000").unwrap();
        node.remove_property("reg");
        for index in 0..6 {
            let mut bus = DeviceTreeNode::new(format!("motherboard-bus{index}")).unwrap();
            bus.add_child(node);
            node = bus;
        }
        tree.root.add_child(node);
    });
    let refusal = discover(&blob).unwrap_err();
    assert_eq!(refusal.problem, Problem::NoProperty("reg"));
    assert_eq!(refusal.node.len(), refusal.node.capacity());
    assert!(refusal.node.ends_with("/motherboard-bus0/pl011@9040000"), "{}", refusal.node);
}

#[test]
fn requester_ids_are_masked_and_moved() {
    let smmu = phandle_of(SMMU);
    let blob = changed(|tree| {
        let host = node_at(tree, PCIE);
        set(host, "iommu-map-mask", 0xfff8_u32);
        set(host, "iommu-map", Cells(&[0x8, smmu, 0x1_0000, 0x8, 0x100, smmu, 0x5, 0x10]));
    });
    let map = discover(&blob).unwrap().pcie[0].iommu_map.clone();
    let stream = |function: &str| map.stream(bdf(function)).map(|(_, sid)| sid);
    assert_eq!(stream("00:00.0"), None);
    assert_eq!(stream("00:01.0"), Some(StreamId(0x1_0000)));
    assert_eq!(stream("00:01.7"), Some(StreamId(0x1_0000)));
    assert_eq!(stream("00:02.0"), None);
    assert_eq!(stream("01:01.3"), Some(StreamId(0x5 + 8)));
    let odd = changed(|tree| {
        let host = node_at(tree, PCIE);
        set(host, "iommu-map-mask", 0xfff8_u32);
        set(host, "iommu-map", Cells(&[0x9, smmu, 0, 1]));
    });
    assert!(discover(&odd).is_err());
}

#[test]
fn a_bridge_may_start_above_bus_0() {
    let blob = with(PCIE, "bus-range", Cells(&[0x20, 0x2f]));
    let host = discover(&blob).unwrap().pcie[0].clone();
    assert_eq!(host.config_space(bdf("20:00.0")), Some(host.ecam.base));
    assert_eq!(host.config_space(bdf("21:00.1")), host.ecam.base.checked_add(MIB + 0x1000));
    assert_eq!(host.config_space(bdf("00:00.0")), None);
    let blob = without(PCIE, "bus-range");
    assert_eq!(discover(&blob).unwrap().pcie[0].last_bus, 255);
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let copies = |name: &str, count: u32, address: &dyn Fn(u32) -> Vec<u32>| {
        changed(|tree| {
            let (parent, name) = name.rsplit_once('/').unwrap();
            let parent = node_at(tree, if parent.is_empty() { "/" } else { parent });
            for index in 0..count {
                let original = DeviceTreeNode::from_node(&(*parent).child(name).unwrap());
                let mut copy =
                    DeviceTreeNode::new(format!("{}{:x}", name.split_once('@').unwrap().0, index))
                        .unwrap();
                for property in original.properties() {
                    copy.add_property(property.clone());
                }
                set(&mut copy, "reg", Cells(&address(index)));
                parent.add_child(copy);
            }
        })
    };
    let limit = |blob: Vec<u8>| match discover(&blob) {
        Err(Refusal { problem: Problem::TooMany { what, limit }, .. }) => Some((what, limit)),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    let cpu = |index| vec![0x100 + index];
    assert_eq!(limit(copies("/cpus/cpu@0", 14, &cpu)), None);
    assert_eq!(limit(copies("/cpus/cpu@0", 15, &cpu)), Some(("CPUs", MAX_CPUS)));
    let page = |index| vec![0x10, 0x1_0000 * index, 0, 0x1_0000];
    assert_eq!(limit(copies(UART, 2, &page)), None);
    assert_eq!(limit(copies(UART, 3, &page)), Some(("PL011 UARTs", MAX_DEVICES)));
    let memory = |index| vec![0x20, 0x1_0000 * index, 0, 0x1_0000];
    assert_eq!(limit(copies("/memory@40000000", 8, &memory)), Some(("memory regions", MAX_MEMORY)));
}

#[test]
fn nodes_nested_without_end_are_refused() {
    let nested = |depth: usize| {
        changed(|tree| {
            let mut node = DeviceTreeNode::new("bottom").unwrap();
            for _ in 1..depth {
                let mut above = DeviceTreeNode::new("level").unwrap();
                above.add_child(node);
                node = above;
            }
            tree.root.add_child(node);
        })
    };
    assert!(discover(&nested(16)).is_ok());
    assert_eq!(discover(&nested(17)).unwrap_err().problem, Problem::TooDeep);
    assert_eq!(discover(&nested(2000)).unwrap_err().problem, Problem::TooDeep);
}

/// What must hold of every machine, whatever tree it came from.
fn check_invariants(machine: &Machine) {
    assert!(!machine.memory.is_empty() && !machine.cpus.is_empty() && !machine.smmus.is_empty());
    for (index, range) in machine.memory.iter().enumerate() {
        assert!(range.last().is_some());
        assert!(machine.memory[..index].iter().all(|other| !other.overlaps(*range)));
    }
    for host in &machine.pcie {
        assert!(host.first_bus <= host.last_bus);
        let last = Bdf::new(host.last_bus, 31, 7).unwrap();
        let config = host.config_space(last).unwrap();
        assert!(config.checked_add(4095) <= host.ecam.last());
        for window in &host.windows {
            assert!(window.cpu.last().is_some());
            assert!(window.pci.checked_add(window.cpu.size - 1).is_some());
        }
        for requester_id in [0, 0x10, 0xfff, 0xffff].map(Bdf::from_requester_id) {
            if let Some((smmu, _)) = host.iommu_map.stream(requester_id) {
                assert!(machine.smmus.iter().any(|other| other.phandle == smmu));
            }
            let _ =
                (host.msi_map.device_id(requester_id), host.intx.interrupt(requester_id, Pin::A));
        }
    }
}

fn survive(blob: &[u8]) {
    match discover(blob) {
        Ok(machine) => check_invariants(&machine),
        Err(refusal) => assert!(refusal.to_string().is_ascii()),
    }
    let _ = console(blob);
}

proptest! {
    #![proptest_config(crate::cases(300))]

    #[test]
    fn damaged_blobs_never_panic(
        damage in prop::collection::vec((0..NESTED.len(), any::<u8>()), 1..6),
        length in prop::option::of(0..NESTED.len()),
    ) {
        let mut blob = NESTED.to_vec();
        for (at, byte) in damage {
            blob[at] = byte;
        }
        blob.truncate(length.unwrap_or(blob.len()));
        survive(&blob);
    }

    #[test]
    fn damaged_cells_never_panic(
        damage in prop::collection::vec(
            (0..NESTED.len() / 4, prop_oneof![0..10_u32, Just(u32::MAX), Just(1 << 31), any::<u32>()]),
            1..4,
        ),
    ) {
        let mut blob = NESTED.to_vec();
        for (at, cell) in damage {
            blob[at * 4..][..4].copy_from_slice(&cell.to_be_bytes());
        }
        survive(&blob);
    }

    #[test]
    fn odd_values_never_panic(
        node in prop::sample::select(
            &["/", GIC, SMMU, PCIE, UART, "/timer", "/cpus", "/cpus/cpu@1", "/chosen", "/aliases", "/psci",
                "/memory@40000000", "/intc@8000000/its@8080000"][..],
        ),
        which in any::<prop::sample::Index>(),
        cells in prop::collection::vec(prop_oneof![0..10_u32, Just(u32::MAX), any::<u32>()], 0..12),
        ragged in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let blob = changed(|tree| {
            let node = node_at(tree, node);
            let names: Vec<String> =
                (*node).properties().map(|property| property.name().to_owned()).collect();
            let mut value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
            value.extend(ragged);
            set(node, &names[which.index(names.len())], value);
        });
        survive(&blob);
    }
}
