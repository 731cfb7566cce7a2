//! EL2's own map: the identity, W^X, with unmapped pages below the stacks.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use smmu::addr::Pa;

use crate::arch::boot;

type Table = PageTable<El23Attributes>;

/// Tables enough for a few splits of RAM and device windows; a machine that needs more is refused.
const TABLES: usize = 64;

#[repr(C, align(4096))]
struct Pool([[u8; 4096]; TABLES]);

static mut POOL: Pool = Pool([[0; 4096]; TABLES]);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Tables out of a fixed pool, at the addresses where the walker finds them.
struct Tables;

impl Translation<El23Attributes> for Tables {
    fn allocate_table(&mut self) -> (NonNull<Table>, PhysicalAddress) {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(index < TABLES, "EL2's map needs more tables than its pool has");
        let at = (&raw mut POOL as usize) + index * 4096;
        (NonNull::new(at as *mut Table).expect("the pool is not at 0"), PhysicalAddress(at))
    }

    unsafe fn deallocate_table(&mut self, _: NonNull<Table>) {
        // The map only ever grows, so no table is given back.
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<Table> {
        NonNull::new(pa.0 as *mut Table).expect("no table is at 0")
    }
}

/// What a range of EL2's addresses may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Execute only what is here; never write it.
    Code,
    /// Read only.
    Constants,
    /// Read and write, never execute.
    Data,
    /// Device registers.
    Device,
    /// PCI configuration space, where a write is complete only when the function has seen it.
    Configuration,
}

impl Use {
    fn attributes(self) -> El23Attributes {
        // MAIR index 0 is Device-nGnRE, 1 Normal write-back, 2 Device-nGnRnE (boot.S). Bit 6, AP[1], is RES1 at EL2.
        let common = El23Attributes::VALID | El23Attributes::ACCESSED | El23Attributes::USER_RES1;
        let normal = common | El23Attributes::ATTRIBUTE_INDEX_1 | El23Attributes::INNER_SHAREABLE;
        match self {
            Self::Code => normal | El23Attributes::READ_ONLY,
            Self::Constants => normal | El23Attributes::READ_ONLY | El23Attributes::XN,
            Self::Data => normal | El23Attributes::XN,
            Self::Device => common | El23Attributes::ATTRIBUTE_INDEX_0 | El23Attributes::XN,
            Self::Configuration => common | El23Attributes::ATTRIBUTE_INDEX_2 | El23Attributes::XN,
        }
    }
}

/// EL2's map under construction.
pub struct Map(Mapping<Tables, El2>);

impl Map {
    /// Maps the image. Called once, under the boot map.
    pub fn of_image() -> Self {
        use crate::mem::layout;
        let mut map = Self(Mapping::new(Tables, 0, El2));
        map.add(layout::text(), Use::Code);
        map.add(layout::rodata(), Use::Constants);
        map.add(layout::data(), Use::Data);
        for cpu in 0..crate::arch::cpu::MAX_CPUS {
            map.add(layout::stack(cpu), Use::Data);
            map.add(layout::emergency_stack(cpu), Use::Data);
        }
        map
    }

    /// Maps `range`, widened to whole pages, at its own addresses.
    ///
    /// # Panics
    ///
    /// If the pool of tables is exhausted or the range lies beyond 48 bits.
    pub fn add(&mut self, range: Range<Pa>, purpose: Use) {
        if range.is_empty() {
            return;
        }
        let region = MemoryRegion::new(range.start.raw() as usize, range.end.raw() as usize);
        self.0
            .map_range(
                &region,
                PhysicalAddress(region.start().0),
                purpose.attributes(),
                Constraints::empty(),
            )
            .unwrap_or_else(|_| panic!("EL2 cannot map {} to {}", range.start, range.end));
    }

    /// Makes this the map of this CPU, in place of the boot map. More can be added afterwards.
    pub fn activate(&mut self) {
        self.0.mark_active();
        // SAFETY: `of_image` mapped code, constants, data and stacks at their present addresses.
        unsafe { boot::use_map(self.root()) };
    }

    /// The root table, for the other CPUs.
    pub fn root(&self) -> Pa {
        Pa::new(self.0.root_address().0 as u64)
    }

    /// Keeps the map as it is for ever.
    pub fn seal(self) {
        // An active map must not be dropped, and its tables have no other owner.
        core::mem::forget(self.0);
    }
}
