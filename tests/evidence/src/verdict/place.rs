//! What an address that a device was given means: whose memory it is, and what the table calls it.

use platform::report::MemoryKind;
use smmu::addr::PAGE_SIZE;

use crate::interval::IntervalSet;
use crate::machine::Machine;
use crate::oracle::{pages, reachable};
use crate::report::Report;

/// Where an access of a VM's device would go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The VM's own RAM.
    Own,
    /// The doorbell that its devices may write messages to.
    Doorbell,
    /// Somewhere else: a name, as `smmu` or another VM's, and the address itself.
    Foreign {
        /// What the piece of the machine is called.
        name: String,
        /// The page's first address.
        page: u64,
    },
}

impl Place {
    /// Whether DMA may go there.
    pub fn is_legal(&self) -> bool {
        !matches!(self, Self::Foreign { .. })
    }
}

/// Where `vm`'s device goes when it is given `address`.
///
/// Under the hypervisor the address is the VM's IPA where the VM has something, and elsewhere it is a try
/// at the physical address of the same value. Natively it is physical, and all RAM is the guest's own
/// unless a region of the machine names it.
pub fn place(machine: &Machine, report: &Report, vm: &str, address: u64) -> Place {
    if machine.native {
        let (base, size) = machine.ram;
        if machine.region(address).is_none() && address.checked_sub(base).is_some_and(|o| o < size)
        {
            return Place::Own;
        }
    } else if let Some(kind) = kind_at(report, vm, address) {
        match kind {
            MemoryKind::Ram => return Place::Own,
            MemoryKind::Doorbell => return Place::Doorbell,
            MemoryKind::Mmio | MemoryKind::Registers => {}
        }
    }
    let page = address / PAGE_SIZE * PAGE_SIZE;
    Place::Foreign { name: physical(machine, report, address), page }
}

/// What the table calls the physical address `pa`.
pub fn physical(machine: &Machine, report: &Report, pa: u64) -> String {
    let owner = report.vms.iter().find(|vm| reachable(vm).contains(pa / PAGE_SIZE));
    let region = machine.region(pa).map(|region| region.name.clone());
    let ram = pa.checked_sub(machine.ram.0).is_some_and(|offset| offset < machine.ram.1);
    let rest = if ram { "RAM" } else { "unmapped" };
    region.or_else(|| owner.map(|vm| vm.name.clone())).unwrap_or_else(|| rest.into())
}

/// The physical address behind `ipa` in `vm`'s RAM.
pub fn translate(report: &Report, vm: &str, ipa: u64) -> Option<u64> {
    let ram = report.vm(vm)?.memory.iter().filter(|piece| piece.kind == MemoryKind::Ram);
    ram.filter_map(|piece| {
        let offset = ipa.checked_sub(piece.ipa.0).filter(|offset| *offset < piece.size)?;
        piece.pa.0.checked_add(offset)
    })
    .next()
}

/// The pages, by physical page number, in which an attacker's data may be: its own RAM.
pub fn where_attackers_write(machine: &Machine, report: &Report) -> IntervalSet {
    if machine.native {
        let (base, size) = machine.ram;
        let ram: IntervalSet = std::iter::once(pages(base, size)).collect();
        let named = machine.regions.iter().map(|region| pages(region.base, region.size)).collect();
        return ram.difference(&named);
    }
    let attackers = machine.vms.iter().filter(|vm| vm.guest.nonce().is_some());
    attackers
        .filter_map(|vm| report.vm(&vm.name))
        .flat_map(|vm| reachable(vm).iter().collect::<Vec<_>>())
        .collect()
}

fn kind_at(report: &Report, vm: &str, ipa: u64) -> Option<MemoryKind> {
    let memory = &report.vm(vm)?.memory;
    memory
        .iter()
        .find(|piece| ipa.checked_sub(piece.ipa.0).is_some_and(|offset| offset < piece.size))
        .map(|piece| piece.kind)
}
