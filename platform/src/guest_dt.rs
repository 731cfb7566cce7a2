//! A guest's device tree: the fixed [`guest_map`] plus what differs between VMs.

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use smmu::addr::Ipa;

use crate::dt::{Conduit, Interrupt, Trigger};
use crate::guest_map;
use crate::pcie::{Bdf, Pin};

const GIC: u32 = 1;
const CLOCK: u32 = 2;
const SMMU: u32 = 3;
/// How many requester IDs bus 0 has.
const REQUESTERS: u32 = 0x100;
/// How many slots of bus 0 have an entry each in the `interrupt-map`: after so many, the wiring repeats.
const SWIZZLE_PERIOD: u8 = 4;

/// What differs between guests.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// vCPUs, 1 to 16.
    pub cpus: u32,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// Where the initrd is and how many bytes it has.
    pub initrd: Option<(Ipa, u64)>,
    /// How the guest calls PSCI.
    pub conduit: Conduit,
    /// Whether it sees an SMMU.
    pub smmu: bool,
}

/// Writes a guest's device tree.
pub fn generate(guest: &Guest<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.root = node("")
        .with("compatible", "linux,dummy-virt")
        .with("model", "Portcullis guest")
        .with("#address-cells", 2_u32)
        .with("#size-cells", 2_u32)
        .with("interrupt-parent", GIC)
        .child(chosen(guest))
        .child(node("aliases").with("serial0", &*format!("/{}", unit("pl011", guest_map::PL011))))
        .child(
            node(&unit("memory", guest_map::RAM))
                .with("device_type", "memory")
                .with("reg", reg(&[(guest_map::RAM, guest.memory)])),
        )
        .child(cpus(guest.cpus))
        .child(node("psci").with("compatible", Strings(&["arm,psci-1.0", "arm,psci-0.2"])).with(
            "method",
            match guest.conduit {
                Conduit::Smc => "smc",
                Conduit::Hvc => "hvc",
            },
        ))
        .child(gic(guest.cpus))
        .child(timer())
        .child(
            node("apb-pclk")
                .with("compatible", "fixed-clock")
                .with("#clock-cells", 0_u32)
                .with("clock-frequency", guest_map::PL011_CLOCK_HZ)
                .with("clock-output-names", "clk24mhz")
                .with("phandle", CLOCK),
        )
        .child(
            node(&unit("pl011", guest_map::PL011))
                .with("compatible", Strings(&["arm,pl011", "arm,primecell"]))
                .with("reg", reg(&[(guest_map::PL011, guest_map::PL011_SIZE)]))
                .with("interrupts", Cells(specifier(guest_map::PL011_INTERRUPT).to_vec()))
                .with("clocks", Cells(vec![CLOCK, CLOCK]))
                .with("clock-names", Strings(&["uartclk", "apb_pclk"])),
        )
        .child(pcie(guest.smmu))
        .0;
    if guest.smmu {
        tree.root.add_child(smmu().0);
    }
    tree.to_dtb()
}

fn chosen(guest: &Guest<'_>) -> Builder {
    let mut chosen = node("chosen")
        .with("stdout-path", &*format!("/{}", unit("pl011", guest_map::PL011)))
        .with("bootargs", guest.bootargs);
    if let Some((start, size)) = guest.initrd {
        chosen = chosen
            .with("linux,initrd-start", start.raw())
            .with("linux,initrd-end", start.raw() + size);
    }
    chosen
}

fn cpus(count: u32) -> Builder {
    let mut cpus = node("cpus").with("#address-cells", 1_u32).with("#size-cells", 0_u32);
    for index in 0..count {
        let cpu = node(&format!("cpu@{index:x}"))
            .with("device_type", "cpu")
            .with("compatible", "arm,armv8")
            .with("reg", index)
            .with("enable-method", "psci");
        cpus = cpus.child(cpu);
    }
    cpus
}

fn gic(cpus: u32) -> Builder {
    let redistributors = u64::from(cpus) * guest_map::GICR_STRIDE;
    node(&unit("intc", guest_map::GICD))
        .with("compatible", "arm,gic-v3")
        .with("interrupt-controller", Cells(vec![]))
        .with("#interrupt-cells", 3_u32)
        .with("#address-cells", 2_u32)
        .with("#size-cells", 2_u32)
        .with("ranges", Cells(vec![]))
        .with("#redistributor-regions", 1_u32)
        .with(
            "reg",
            reg(&[(guest_map::GICD, guest_map::GICD_SIZE), (guest_map::GICR, redistributors)]),
        )
        .with("phandle", GIC)
}

fn timer() -> Builder {
    let interrupts = [
        guest_map::TIMER_SECURE_PHYSICAL,
        guest_map::TIMER_PHYSICAL,
        guest_map::TIMER_VIRTUAL,
        guest_map::TIMER_HYPERVISOR,
    ];
    let cells = interrupts
        .into_iter()
        .flat_map(|intid| specifier(Interrupt { intid, trigger: Trigger::Level }))
        .collect();
    node("timer")
        .with("compatible", "arm,armv8-timer")
        .with("interrupts", Cells(cells))
        .with("always-on", Cells(vec![]))
}

/// The SMMU of nested translation: coherent, with wired interrupts only.
fn smmu() -> Builder {
    let interrupts = [guest_map::SMMU_EVENTQ, guest_map::SMMU_CMDQ_SYNC, guest_map::SMMU_GERROR];
    node(&unit("smmuv3", guest_map::SMMU))
        .with("compatible", "arm,smmu-v3")
        .with("reg", reg(&[(guest_map::SMMU, guest_map::SMMU_SIZE)]))
        .with("interrupts", Cells(interrupts.into_iter().flat_map(specifier).collect()))
        .with("interrupt-names", Strings(&["eventq", "cmdq-sync", "gerror"]))
        .with("dma-coherent", Cells(vec![]))
        .with("#iommu-cells", 1_u32)
        .with("phandle", SMMU)
}

fn pcie(smmu: bool) -> Builder {
    let mut ranges = Vec::new();
    for (space, pci, cpu, size) in [
        (0x0100_0000, 0, guest_map::PCI_IO, guest_map::PCI_IO_SIZE),
        (0x0200_0000, guest_map::PCI_MEM32.raw(), guest_map::PCI_MEM32, guest_map::PCI_MEM32_SIZE),
        (0x0300_0000, guest_map::PCI_MEM64.raw(), guest_map::PCI_MEM64, guest_map::PCI_MEM64_SIZE),
    ] {
        ranges.push(space);
        ranges.extend([pci, cpu.raw(), size].into_iter().flat_map(halves));
    }
    let mut map = Vec::new();
    for (device, pin) in (0..SWIZZLE_PERIOD).flat_map(|device| Pin::ALL.map(|pin| (device, pin))) {
        let unit = slot(device);
        map.extend([unit, 0, 0, pin as u32, GIC, 0, 0]);
        map.extend(specifier(guest_map::intx(device, pin)));
    }
    let bridge = node(&unit("pcie", guest_map::PCI_ECAM))
        .with("compatible", "pci-host-ecam-generic")
        .with("device_type", "pci")
        .with("reg", reg(&[(guest_map::PCI_ECAM, guest_map::PCI_ECAM_SIZE)]))
        .with("bus-range", Cells(vec![0, 0]))
        .with("linux,pci-domain", 0_u32)
        .with("dma-coherent", Cells(vec![]))
        .with("#address-cells", 3_u32)
        .with("#size-cells", 2_u32)
        .with("#interrupt-cells", 1_u32)
        .with("ranges", Cells(ranges))
        .with("interrupt-map-mask", Cells(vec![slot(SWIZZLE_PERIOD - 1), 0, 0, 7]))
        .with("interrupt-map", Cells(map));
    match smmu {
        // A function's StreamID is its requester ID on bus 0.
        true => bridge.with("iommu-map", Cells(vec![0, SMMU, 0, REQUESTERS])),
        false => bridge,
    }
}

/// Returns the first unit address cell of a slot on bus 0.
fn slot(device: u8) -> u32 {
    let bdf = Bdf::new(0, device, 0).expect("a slot number below 32");
    u32::from(bdf.requester_id()) << 8
}

/// Returns an interrupt as the GICv3 binding writes it.
fn specifier(interrupt: Interrupt) -> [u32; 3] {
    let flags = match interrupt.trigger {
        Trigger::Edge => 1,
        Trigger::Level => 4,
    };
    match interrupt.intid.checked_sub(32) {
        Some(spi) => [0, spi, flags],
        None => [1, interrupt.intid - 16, flags],
    }
}

fn unit(name: &str, at: Ipa) -> String {
    format!("{name}@{:x}", at.raw())
}

fn halves(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

fn reg(ranges: &[(Ipa, u64)]) -> Cells {
    Cells(ranges.iter().flat_map(|(base, size)| [base.raw(), *size]).flat_map(halves).collect())
}

/// A value of cells; none for a property that is merely there.
struct Cells(Vec<u32>);

impl ToPropertyValue for Cells {
    fn property_value_len(&self) -> usize {
        self.0.len() * 4
    }

    fn write_property_value(&self, buffer: &mut [u8]) {
        for (bytes, cell) in buffer.chunks_exact_mut(4).zip(&self.0) {
            bytes.copy_from_slice(&cell.to_be_bytes());
        }
    }
}

/// A list of strings.
struct Strings(&'static [&'static str]);

impl ToPropertyValue for Strings {
    fn property_value_len(&self) -> usize {
        self.0.iter().map(|text| text.len() + 1).sum()
    }

    fn write_property_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice((self.0.join("\0") + "\0").as_bytes());
    }
}

struct Builder(DeviceTreeNode);

fn node(name: &str) -> Builder {
    Builder(DeviceTreeNode::new(name).expect("every name here is a valid node name"))
}

impl Builder {
    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        let property = DeviceTreeProperty::new(name, value);
        self.0.add_property(property.expect("every name here is a valid property name"));
        self
    }

    fn child(mut self, child: Self) -> Self {
        self.0.add_child(child.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::{Fdt, FdtNode};
    use dtoolkit::{Node, Property};

    use super::*;
    use crate::dt::{self, Problem, Range, Window, WindowKind};
    use smmu::addr::Pa;

    fn guest() -> Guest<'static> {
        Guest {
            memory: 0x2000_0000,
            cpus: 3,
            bootargs: "console=ttyAMA0",
            initrd: Some((Ipa::new(0x4400_0000), 0x1234)),
            conduit: Conduit::Smc,
            smmu: false,
        }
    }

    /// Gives the tree what the machine of a guest lacks, so that `discover` reads everything else.
    fn as_machine(blob: &[u8]) -> dt::Machine {
        let mut tree = DeviceTree::from_fdt(&Fdt::new(blob).unwrap());
        let smmu = node("smmu@9050000")
            .with("compatible", "arm,smmu-v3")
            .with("reg", reg(&[(Ipa::new(0x0905_0000), 0x2_0000)]))
            .with("#iommu-cells", 1_u32)
            .with("phandle", 99_u32)
            .with("interrupts", Cells(vec![0, 74, 1]))
            .with("interrupt-names", "combined");
        tree.root.add_child(smmu.0);
        let property = DeviceTreeProperty::new("interrupts", Cells(vec![1, 9, 4])).unwrap();
        tree.find_node_mut("/intc@8000000").unwrap().add_property(property);
        dt::discover(&tree.to_dtb()).unwrap()
    }

    fn node_at<'t>(blob: &'t [u8], path: &str) -> FdtNode<'t> {
        Fdt::new(blob).unwrap().find_node(path).unwrap_or_else(|| panic!("no node {path}"))
    }

    fn range(base: Ipa, size: u64) -> Range {
        Range { base: Pa::new(base.raw()), size }
    }

    #[test]
    fn a_guest_reads_the_guest_map() {
        let machine = as_machine(&generate(&guest()));
        assert_eq!(machine.memory, [range(guest_map::RAM, 0x2000_0000)]);
        assert_eq!(machine.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(machine.psci, Conduit::Smc);
        assert_eq!(machine.gic.distributor, range(guest_map::GICD, guest_map::GICD_SIZE));
        let redistributors = machine.gic.redistributors[0].range;
        assert_eq!(redistributors, range(guest_map::GICR, 3 * guest_map::GICR_STRIDE));
        assert!(machine.gic.its.is_empty());
        assert_eq!(machine.timers.virtual_.intid, guest_map::TIMER_VIRTUAL);
        assert_eq!(machine.timers.physical.intid, guest_map::TIMER_PHYSICAL);
        assert_eq!(machine.uarts[0].range, range(guest_map::PL011, guest_map::PL011_SIZE));
        assert_eq!(machine.uarts[0].interrupt, Some(guest_map::PL011_INTERRUPT));
        assert_eq!(machine.bootargs, "console=ttyAMA0");
        assert_eq!(machine.initrd, Some(range(Ipa::new(0x4400_0000), 0x1234)));
    }

    #[test]
    fn a_guest_reads_its_pci_bus() {
        let machine = as_machine(&generate(&guest()));
        let [host] = &machine.pcie[..] else { panic!("one host bridge") };
        assert_eq!(host.ecam, range(guest_map::PCI_ECAM, guest_map::PCI_ECAM_SIZE));
        assert_eq!((host.first_bus, host.last_bus), (0, 0));
        assert!(host.dma_coherent);
        let window = |kind, pci, base, size| Window {
            kind,
            prefetchable: false,
            pci,
            cpu: range(base, size),
        };
        let (mem32, mem64) = (guest_map::PCI_MEM32, guest_map::PCI_MEM64);
        assert_eq!(
            host.windows,
            [
                window(WindowKind::Io, 0, guest_map::PCI_IO, guest_map::PCI_IO_SIZE),
                window(WindowKind::Mem32, mem32.raw(), mem32, guest_map::PCI_MEM32_SIZE),
                window(WindowKind::Mem64, mem64.raw(), mem64, guest_map::PCI_MEM64_SIZE),
            ]
        );
        for (device, pin) in (0..32).flat_map(|device| Pin::ALL.map(|pin| (device, pin))) {
            let bdf = Bdf::new(0, device, 0).unwrap();
            assert_eq!(host.intx.interrupt(bdf, pin), Some(guest_map::intx(device, pin)));
            assert_eq!(host.iommu_map.stream(bdf), None);
            assert_eq!(host.msi_map.device_id(bdf), None);
        }
    }

    #[test]
    fn a_guest_sees_no_smmu_and_no_maintenance_interrupt() {
        let blob = generate(&guest());
        assert_eq!(dt::discover(&blob).unwrap_err().problem, Problem::NoSmmu);
        assert!(node_at(&blob, "/intc").property("interrupts").is_none());
    }

    #[test]
    fn a_nested_guest_sees_its_smmu_in_front_of_every_function_of_its_bus() {
        let blob = generate(&Guest { smmu: true, ..guest() });
        let mut tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
        let property = DeviceTreeProperty::new("interrupts", Cells(vec![1, 9, 4])).unwrap();
        tree.find_node_mut("/intc@8000000").unwrap().add_property(property);
        let machine = dt::discover(&tree.to_dtb()).unwrap();
        let [smmu] = &machine.smmus[..] else { panic!("one SMMU") };
        assert_eq!(smmu.range, range(guest_map::SMMU, guest_map::SMMU_SIZE));
        assert_eq!(smmu.interrupts.eventq(), guest_map::SMMU_EVENTQ);
        assert_eq!(smmu.interrupts.gerror(), guest_map::SMMU_GERROR);
        assert!(node_at(&blob, "/smmuv3@9050000").property("dma-coherent").is_some());
        for (device, function) in [(0, 0), (3, 1), (31, 7)] {
            let bdf = Bdf::new(0, device, function).unwrap();
            let sid = smmu::addr::StreamId(bdf.requester_id().into());
            assert_eq!(machine.pcie[0].iommu_map.stream(bdf), Some((smmu.phandle, sid)));
        }
    }

    #[test]
    fn what_boot_loaders_and_kernels_look_up_is_there() {
        let blob = generate(&Guest { initrd: None, conduit: Conduit::Hvc, ..guest() });
        let text = |path: &str, property: &str| -> String {
            node_at(&blob, path).property(property).unwrap().value_as::<&str>().unwrap().into()
        };
        let console = text("/chosen", "stdout-path");
        assert_eq!(text("/aliases", "serial0"), console);
        assert!(node_at(&blob, &console).property("clocks").is_some());
        assert_eq!(text("/psci", "method"), "hvc");
        assert!(node_at(&blob, "/chosen").property("linux,initrd-start").is_none());
        for cpu in node_at(&blob, "/cpus").children() {
            assert_eq!(text(&format!("/cpus/{}", cpu.name()), "enable-method"), "psci");
        }
    }

    #[test]
    fn every_allowed_number_of_cpus_fits() {
        for cpus in 1..=16 {
            let machine = as_machine(&generate(&Guest { cpus, ..guest() }));
            assert_eq!(machine.cpus.len(), cpus as usize);
        }
    }
}
