//! What a guest's trap is answered with.

use arm_psci::ErrorCode;
use platform::guest_map::{
    self, GICD, GICD_SIZE, GICR, GICR_STRIDE, PCI_ECAM, PCI_ECAM_SIZE, PCI_IO, PCI_IO_SIZE,
    PCI_MEM32, PCI_MEM32_SIZE, PCI_MEM64, PCI_MEM64_SIZE, PL011, PL011_SIZE, SMMU, SMMU_SIZE,
};
use platform::report::Cause;
use smmu::addr::{Ipa, VmIndex};
use smmu::guest::COMMAND_DOORBELL;

use crate::arch::{idregs as hardware, sysreg, vcpu};
use crate::exits::Reason;
use crate::lines::Say;
use crate::machine::{self, hypervisor};
use crate::pci::DeviceMemory;
use crate::psci::{self, Outcome};
use crate::run::{Flow, Running};
use crate::syndrome::{Access, RegisterAccess, Trap};
use crate::vgic::{Region, SgiRegister};
use crate::vm::{Power, Vm};
use crate::vpci::Target;
use crate::vsmmu::{self, GuestSmmu};
use crate::width::Width;
use crate::{console, idregs, takeover, teardown, typing, vuart};

/// Answers the trap that `esr`, `far` and `hpfar` describe.
pub fn trap(running: &mut Running, esr: u64, far: u64, hpfar: u64) -> Flow {
    let trap = Trap::decode(esr, far, hpfar);
    if !takeover::look(running, &trap) {
        return Flow::Continue;
    }
    match trap {
        Trap::Wait => {
            // Not trapped on purpose; a CPU that traps it anyway loses nothing by going on.
            vcpu::skip(&mut running.registers, esr);
            Flow::Continue
        }
        Trap::Hvc(immediate) => call(running, immediate),
        Trap::Smc(immediate) => {
            // Unlike HVC, SMC leaves the return address at the instruction itself.
            vcpu::skip(&mut running.registers, esr);
            call(running, immediate)
        }
        Trap::Register(access) => {
            running.vm.exits.count(Reason::SystemRegister);
            if register(running, access) {
                vcpu::skip(&mut running.registers, esr);
            } else {
                vcpu::inject_undefined(&mut running.registers);
            }
            Flow::Continue
        }
        Trap::Data { ipa, access } => {
            match memory(running, ipa, access) {
                Answer::Done => vcpu::skip(&mut running.registers, esr),
                Answer::Retry => {}
                Answer::Nothing => abort(running, ipa, esr, far),
            }
            Flow::Continue
        }
        Trap::Opaque { ipa } => {
            abort(running, ipa, esr, far);
            Flow::Continue
        }
        Trap::Undefined => {
            running.vm.exits.count(Reason::Undefined);
            vcpu::inject_undefined(&mut running.registers);
            Flow::Continue
        }
    }
}

/// What came of an access to memory that stage 2 does not map.
enum Answer {
    /// It was carried out.
    Done,
    /// Stage 2 maps it by now: the guest tries again.
    Retry,
    /// Nobody is there.
    Nothing,
}

fn abort(running: &mut Running, ipa: Ipa, esr: u64, far: u64) {
    running.vm.exits.count(Reason::Abort);
    let vm = running.vm;
    let text = format_args!("{}: nothing answers at {ipa}", vm.name());
    vm.say(log::Level::Debug, Say::IfRoom, text);
    vcpu::inject_external_abort(&mut running.registers, esr, far);
}

impl psci::Cpus for Vm {
    fn power(&self, index: usize) -> Option<arm_psci::AffinityInfo> {
        Some(match *self.vcpus.get(index)?.power.lock() {
            Power::Off => arm_psci::AffinityInfo::Off,
            Power::Starting { .. } => arm_psci::AffinityInfo::OnPending,
            Power::On => arm_psci::AffinityInfo::On,
        })
    }

    fn is_ram(&self, entry: Ipa) -> bool {
        self.ram.contains(entry)
    }

    fn start(&self, index: usize, entry: Ipa, argument: u64) -> Result<(), ErrorCode> {
        let vcpu = &self.vcpus[index];
        let mut power = vcpu.power.lock();
        match *power {
            Power::Off => {
                *power = Power::Starting { entry, argument };
                self.cpus_on.add();
            }
            Power::Starting { .. } => return Err(ErrorCode::OnPending),
            Power::On => return Err(ErrorCode::AlreadyOn),
        }
        drop(power);
        machine::gic().kick(vcpu.cpu);
        Ok(())
    }
}

/// PSCI's `DENIED`.
const DENIED: u64 = -3i64 as u64;
/// SMCCC's and PSCI's `NOT_SUPPORTED`.
const NOT_SUPPORTED: u64 = -1i64 as u64;

/// Answers a call; the convention knows no other immediate than 0.
fn call(running: &mut Running, immediate: u16) -> Flow {
    running.vm.exits.count(Reason::Call);
    if immediate != 0 {
        running.registers.x[0] = NOT_SUPPORTED;
        return Flow::Continue;
    }
    let x = &mut running.registers.x;
    let arguments = [x[0], x[1], x[2], x[3]];
    match psci::call(&arguments, running.vm) {
        Outcome::Return(value) => x[0] = value,
        Outcome::Standby => {
            x[0] = 0;
            if !running.interrupt_pending() {
                sysreg::wfi();
            }
        }
        Outcome::CpuOff if running.vm.cpus_on.leave() => return Flow::Off,
        Outcome::CpuOff => x[0] = DENIED,
        Outcome::SystemOff => teardown::begin(running.vm, Cause::SystemOff),
        Outcome::SystemReset => teardown::begin(running.vm, Cause::SystemReset),
    }
    Flow::Continue
}

fn get(running: &Running, register: Option<usize>) -> u64 {
    register.map_or(0, |number| running.registers.x[number])
}

fn set(running: &mut Running, register: Option<usize>, value: u64) {
    if let Some(number) = register {
        running.registers.x[number] = value;
    }
}

/// What `access` stores.
fn stored(running: &Running, access: Access) -> u64 {
    access.stored(get(running, access.register))
}

/// Leaves what `access` loads, which was `value`, in its register.
fn load(running: &mut Running, access: Access, value: u64) {
    set(running, access.register, access.extend(value));
}

/// Answers an access to a system register; `false` if there is no such register.
fn register(running: &mut Running, access: RegisterAccess) -> bool {
    let vcpu = running.index;
    match (access.register, access.read) {
        ((3, 0, 0, crm @ 1..=7, op2), true) => {
            let value = idregs::visible(crm, op2, hardware::read(crm, op2));
            set(running, access.general, value);
        }
        // ACTLR_EL1 holds nothing that a guest could use.
        ((3, 0, 1, 0, 1), true) => set(running, access.general, 0),
        ((3, 0, 1, 0, 1), false) => {}
        ((3, 0, 12, 11, op2 @ 5..=7), false) => {
            let register =
                [SgiRegister::Sgi1r, SgiRegister::Asgi1r, SgiRegister::Sgi0r][usize::from(op2) - 5];
            let value = get(running, access.general);
            running.with_gic(|gic| gic.send_sgi(vcpu, register, value));
        }
        ((3, 0, 12, 11, 1), false) => {
            let value = get(running, access.general);
            running.with_gic(|gic| gic.deactivate(vcpu, value));
        }
        (register, false) => {
            let value = get(running, access.general);
            return takeover::write_control(running, register, value);
        }
        _ => return false,
    }
    true
}

/// Whether `ipa` is in the `size` bytes at `base`, and how far.
fn within(ipa: Ipa, base: Ipa, size: u64) -> Option<u64> {
    let offset = ipa.raw().checked_sub(base.raw())?;
    (offset < size).then_some(offset)
}

/// Answers an access to emulated registers.
fn memory(running: &mut Running, ipa: Ipa, access: Access) -> Answer {
    if !ipa.is_aligned(access.width.bytes()) {
        return Answer::Nothing;
    }
    let access = Access { big_endian: vcpu::is_big_endian(&running.registers), ..access };
    let redistributors = || GICR_STRIDE * running.vm.vcpus.len() as u64;
    // First what comes often.
    if let (Some(offset), Some(smmu)) = (within(ipa, SMMU, SMMU_SIZE), &running.vm.smmu) {
        smmu_register(running, smmu, offset as u32, access);
    } else if let Some(offset) = within(ipa, GICD, GICD_SIZE) {
        gic_register(running, Region::Distributor, offset, access);
    } else if let Some(offset) = within(ipa, GICR, redistributors()) {
        gic_register(running, Region::Redistributor, offset, access);
    } else if let Some(offset) = within(ipa, PL011, PL011_SIZE) {
        uart_register(running, offset, access);
    } else if let Some(offset) = within(ipa, PCI_ECAM, PCI_ECAM_SIZE) {
        config_register(running, offset, access);
    } else if PCI_WINDOWS.iter().any(|&(base, size)| within(ipa, base, size).is_some()) {
        return device_register(running, ipa, access);
    } else {
        return Answer::Nothing;
    }
    Answer::Done
}

/// Where the guest may put BARs.
const PCI_WINDOWS: [(Ipa, u64); 3] =
    [(PCI_MEM32, PCI_MEM32_SIZE), (PCI_IO, PCI_IO_SIZE), (PCI_MEM64, PCI_MEM64_SIZE)];

fn config_register(running: &mut Running, offset: u64, access: Access) {
    running.vm.exits.count(Reason::PciConfig);
    let width = access.width;
    let hardware = &hypervisor().pci.hardware;
    let mut pci = running.vm.pci.lock();
    if access.write {
        let value = stored(running, access);
        let effects = pci.config_write(hardware, &mut &running.vm.space, offset, width, value);
        if let Some(master) = effects.bus_master
            && master.on
            && running.vm.may_master(master.function)
        {
            pci.admit(hardware, master.function);
        }
    } else {
        let value = pci.config_read(hardware, offset, width);
        drop(pci);
        load(running, access, value);
    }
}

/// Answers an access to a BAR that stage 2 does not map.
fn device_register(running: &mut Running, ipa: Ipa, access: Access) -> Answer {
    running.vm.exits.count(Reason::PciForward);
    let width = access.width;
    let hardware = &hypervisor().pci.hardware;
    let vm = running.vm;
    // Held during the access: a reset that another CPU asks for must not take the function away under it.
    let pci = vm.pci.lock();
    let answer = match (pci.decode(ipa, width), access.write) {
        (Target::Forward(at), true) => hardware.store(at, width, stored(running, access)),
        (Target::Forward(at), false) => hardware.load(at, width).map(|value| {
            load(running, access, value);
        }),
        (Target::Mapped, _) => return Answer::Retry,
        (Target::Absent, _) => return Answer::Nothing,
    };
    // What the device answers is the guest's, errors included.
    if answer.is_ok() { Answer::Done } else { Answer::Nothing }
}

fn gic_register(running: &mut Running, region: Region, offset: u64, access: Access) {
    running.vm.exits.count(Reason::Gic);
    if access.write {
        let value = stored(running, access);
        running.with_gic(|gic| gic.write(region, offset, access.width, value));
    } else {
        let value = running.with_gic(|gic| gic.read(region, offset, access.width));
        load(running, access, value);
    }
}

/// Reads find what stage 2 maps there, and do not come here.
fn smmu_register(running: &mut Running, smmu: &GuestSmmu, offset: u32, access: Access) {
    let doorbell = offset == COMMAND_DOORBELL;
    running.vm.exits.count(if doorbell { Reason::SmmuCommands } else { Reason::Smmu });
    let width = match access.width {
        Width::Word => Some(vsmmu::Width::Word),
        Width::Double => Some(vsmmu::Width::Double),
        Width::Byte | Width::Half => None,
    };
    let value = stored(running, access);
    vsmmu::write(running, smmu, offset, width, value);
}

fn uart_register(running: &mut Running, offset: u64, access: Access) {
    running.vm.exits.count(Reason::Uart);
    let vm = running.vm;
    let mut uart = vm.uart.lock();
    let before = uart.interrupt();
    let line = if access.write {
        uart.write(offset, stored(running, access) & access.width.mask())
    } else {
        let value = uart.read(offset, access.width);
        load(running, access, value);
        if offset == vuart::DR && vm.index == VmIndex(0) {
            typing::refill(&mut uart);
        }
        None
    };
    let after = uart.interrupt();
    if let Some(line) = line {
        console::CONSOLE.line(format_args!("[{}] {line}", vm.name()));
    }
    // With the UART still locked: levels must arrive in the order in which they arose.
    if before != after {
        running.with_gic(|gic| gic.set_line(guest_map::PL011_INTERRUPT.intid, after));
    }
}
