//! A guest's bus on made-up functions, with a stage 2 that insists on what is promised to it.

use std::vec::Vec;

use platform::guest_map::{PCI_MEM32, PCI_MEM32_SIZE, PCI_MEM64, PCI_MEM64_SIZE};
use smmu::addr::{Ipa, Pa};

use super::{BarMap, MapFailed, Target, Vpci};
use crate::pci::fake::{
    ES1370, Fake, NVME, PLATFORM_FEATURES, World, edu, es1370, interrupt_map, nvme, ohci, virtio,
};
use crate::pci::{Bdf, Request, ResetPolicy, Topology, Width, registers as reg};

pub fn at(text: &str) -> Bdf {
    text.parse().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Map(u64, u64, u64),
    Unmap(u64, u64),
}

/// A stage 2 that insists on what is promised to it.
#[derive(Default)]
pub struct Stage2 {
    pub maps: Vec<(u64, u64, u64)>,
    pub log: Vec<Op>,
    pub full: bool,
}

impl BarMap for Stage2 {
    fn map(&mut self, ipa: Ipa, pa: Pa, size: u64) -> Result<(), MapFailed> {
        let (ipa, pa) = (ipa.raw(), pa.raw());
        if self.full {
            return Err(MapFailed);
        }
        assert!(size >= 4096 && size.is_power_of_two() && (ipa | pa) % 4096 == 0);
        let within =
            |start: Ipa, length: u64| start.raw() <= ipa && ipa + size <= start.raw() + length;
        assert!(
            within(PCI_MEM32, PCI_MEM32_SIZE) || within(PCI_MEM64, PCI_MEM64_SIZE),
            "{ipa:#x} {size:#x}"
        );
        for &(other, _, length) in &self.maps {
            assert!(ipa + size <= other || other + length <= ipa, "{ipa:#x} over {other:#x}");
        }
        self.maps.push((ipa, pa, size));
        self.log.push(Op::Map(ipa, pa, size));
        Ok(())
    }

    fn unmap(&mut self, ipa: Ipa, size: u64) {
        let known =
            self.maps.iter().position(|&(other, _, length)| (other, length) == (ipa.raw(), size));
        self.maps.remove(known.expect("unmaps what is mapped"));
        self.log.push(Op::Unmap(ipa.raw(), size));
    }
}

/// A guest's bus and everything below it.
pub struct Guest {
    pub world: World,
    pub topology: Topology,
    pub vpci: Vpci,
    pub stage2: Stage2,
}

pub fn requests(functions: &[&str]) -> Vec<Request> {
    functions.iter().map(|text| Request { function: at(text), policy: ResetPolicy::Auto }).collect()
}

impl Guest {
    pub fn new(world: World, functions: &[&str]) -> Self {
        Self::with(world, &requests(functions))
    }

    pub fn with(world: World, requests: &[Request]) -> Self {
        let topology = world.enumerate();
        let vpci = Vpci::new(&world, &topology, requests, &interrupt_map()).unwrap();
        Self { world, topology, vpci, stage2: Stage2::default() }
    }

    /// Whether the access stays inside a BAR of one of the guest's functions.
    fn owns(&self, pa: Pa, width: Width) -> bool {
        let bars = self.vpci.functions().flat_map(|(function, _)| function.bars.iter().flatten());
        bars.filter_map(|bar| bar.place.map(|place| (place.cpu.raw(), bar.size))).any(
            |(base, size)| {
                pa.raw().checked_sub(base).is_some_and(|offset| offset + width.bytes() <= size)
            },
        )
    }
}

/// One of everything.
pub fn menagerie() -> Guest {
    let world = World::new();
    world.add(None, edu(1));
    world.add(None, ohci(2));
    world.add(None, es1370(3));
    world.add(None, nvme(4));
    world.add(None, virtio(5, PLATFORM_FEATURES));
    let port = world.add(None, Fake::bridge(6, Some(4)).acs(0x100));
    world.add(Some(port), nvme(0));
    for function in 0..2 {
        let fake = Fake::new(7, function, NVME, 0)
            .multi_function()
            .mem64(0, 0x10000, true)
            .mem32(2, 0x2000);
        world.add(None, fake.express(0x40, 0, false).msi(0x60).power(0x90, true).advanced(0xa0));
    }
    world.add(
        None,
        Fake::new(8, 0, ES1370, 0).io(0, 0x1000).mem32(1, 64 << 20).mem64(4, 1 << 40, false),
    );
    world.add(None, edu(9));
    let owned =
        ["00:01.0", "00:02.0", "00:03.0", "00:04.0", "00:05.0", "01:00.0", "00:07.0", "00:07.1"];
    Guest::new(world, &owned)
}

/// What a guest does, or EL2.
#[derive(Clone, Debug)]
pub enum Step {
    Write { offset: u64, width: Width, value: u64 },
    Read { offset: u64, width: Width },
    Probe { ipa: Ipa, width: Width },
    Close,
    Reset,
}

/// Bits of a function's registers that a guest may change.
fn changeable(fake: &Fake) -> Vec<(u16, u16)> {
    let express = (0x40..0x100).find(|&at| at % 4 == 0 && fake.config[at] == reg::CAP_EXPRESS);
    let mut bits = vec![
        (reg::COMMAND, reg::COMMAND_INTX_DISABLE | reg::COMMAND_BUS_MASTER),
        (reg::STATUS, reg::STATUS_ERRORS),
        // Notes for software, which a reset by EL2 puts back or clears.
        (reg::INTERRUPT_LINE, 0xff),
        (reg::CACHE_LINE, 0xff),
    ];
    if let Some(express) = express {
        bits.push((express as u16 + reg::DEVICE_CONTROL, reg::DEVICE_CONTROL_WRITABLE));
        bits.push((express as u16 + reg::DEVICE_STATUS, reg::DEVICE_STATUS_ERRORS));
    }
    bits
}

fn without_changeable(fake: &Fake) -> Vec<u8> {
    let mut copy = fake.clone();
    for (register, bits) in changeable(fake) {
        let value = copy.get16(register) & !bits;
        copy.put16(register, value);
    }
    copy.config
}

/// Takes the steps. No function gets a bit that is not the guest's to give, and stage 2 shows each BAR's own pages,
/// inside a window, once.
///
/// # Panics
///
/// If not.
pub fn play(admitted: bool, steps: &[Step]) {
    let mut guest = menagerie();
    let pristine: Vec<_> = guest.world.fakes.borrow().iter().map(without_changeable).collect();
    let owned: Vec<Bdf> = guest.vpci.functions().map(|(function, _)| function.at).collect();
    if admitted {
        guest.world.mastering.set(true);
        for &function in &owned {
            guest.vpci.admit(&guest.world, function);
        }
    }
    for step in steps {
        match *step {
            Step::Write { offset, width, value } => {
                _ = guest.vpci.config_write(&guest.world, &mut guest.stage2, offset, width, value);
            }
            Step::Read { offset, width } => {
                let value = guest.vpci.config_read(&guest.world, offset, width);
                assert!(value <= u64::MAX >> (64 - 8 * width.bytes()));
            }
            Step::Probe { ipa, width } => {
                if let Target::Forward(pa) = guest.vpci.decode(ipa, width) {
                    assert!(guest.owns(pa, width), "{ipa} leads to {pa}");
                }
            }
            Step::Close => {
                guest.vpci.close(&guest.world, |_| false);
                guest.world.mastering.set(false);
                let closed: Vec<Bdf> = guest.vpci.functions().map(|(_, at)| at).collect();
                for at in closed {
                    let offset = at.ecam_offset() | u64::from(reg::COMMAND);
                    let command = guest.vpci.config_read(&guest.world, offset, Width::Half);
                    assert_eq!(command & u64::from(reg::COMMAND_BUS_MASTER), 0, "{at}");
                }
            }
            Step::Reset => {
                guest.vpci.reset(&guest.world, &mut guest.stage2);
                assert!(guest.stage2.maps.is_empty());
                guest.world.mastering.set(false);
            }
        }
        if !guest.world.mastering.get() {
            for &function in &owned {
                assert!(!guest.world.armed(function));
            }
        }
    }
    guest.world.check();
    for (fake, pristine) in guest.world.fakes.borrow().iter().zip(&pristine) {
        assert_eq!(&without_changeable(fake), pristine);
    }
    // `Stage2` has checked windows and overlaps; each mapping is exactly one BAR of one of the guest's
    // functions.
    for &(_, pa, size) in &guest.stage2.maps {
        let exact =
            guest.vpci.functions().flat_map(|(function, _)| function.bars.iter().flatten()).any(
                |bar| {
                    bar.is_memory()
                        && bar.size == size
                        && bar.place.is_some_and(|place| place.cpu.raw() == pa)
                },
            );
        assert!(exact);
    }
}
