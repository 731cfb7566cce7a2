//! A physical CPU's life: run the virtual CPU that is its own, or wait for something to do.

use platform::guest_map::PL011_INTERRUPT;
use smmu::addr::Ipa;

use crate::arch::vcpu::{self, Exit, GuestRegisters};
use crate::arch::{cpu, gic, sysreg, tlb};
use crate::exits::Reason;
use crate::lines::Say;
use crate::machine::take_attention;
use crate::mmu::Mmu;
use crate::vgic::{ListRegisters, Vgic};
use crate::vm::{Power, Vm};
use crate::{emulate, interrupts, machine, takeover, teardown, vsmmu};

/// What an exit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Guest code goes on.
    Continue,
    /// This virtual CPU stops.
    Off,
}

/// Runs CPU number [`cpu::number`] for ever.
pub fn run() -> ! {
    let number = cpu::number();
    let own = machine::vms().find_map(|vm| {
        let index = vm.vcpus.iter().position(|vcpu| vcpu.cpu == number)?;
        Some((vm, index))
    });
    if let Some((vm, index)) = own {
        vcpu::configure(index, vm.vtcr, vm.vttbr);
        // Whatever ran here before us may have used the same tags.
        tlb::invalidate_guests();
    }
    loop {
        interrupts::service(None);
        if let Some((vm, index)) = own {
            if let Some((entry, argument)) = vm.vcpus[index].take_start() {
                Running::new(vm, index, entry, argument).run();
            }
            // The first CPU of a VM does what is left to do when none of them runs.
            if index == 0 {
                teardown::advance(vm);
            }
            vsmmu::attend_idle(vm);
        }
        // Whoever gives this CPU something to do kicks it afterwards, which ends the sleep or keeps it from beginning.
        sysreg::wfi();
    }
}

/// A virtual CPU between its start and its stop.
pub struct Running {
    /// Its VM.
    pub vm: &'static Vm,
    /// Which of the VM's CPUs it is.
    pub index: usize,
    /// Its general registers.
    pub registers: GuestRegisters,
    /// What is known of its MMU.
    pub mmu: Mmu,
    /// Whether its translation controls trap.
    suspected: bool,
    lists: ListRegisters,
    /// Whether the list registers own the state of what they hold.
    entered: bool,
}

impl Running {
    fn new(vm: &'static Vm, index: usize, entry: Ipa, argument: u64) -> Self {
        gic::reset_virtual_interface();
        tlb::forget_guest();
        Self {
            vm,
            index,
            registers: vcpu::reset(entry.raw(), argument),
            mmu: Mmu::default(),
            suspected: false,
            lists: ListRegisters::new(gic::list_registers()),
            entered: false,
        }
    }

    fn run(mut self) {
        let mut flow = Flow::Continue;
        takeover::trust(self.vm);
        vcpu::trap_translation_controls(false);
        while flow == Flow::Continue && !teardown::is_stopping(self.vm) {
            vsmmu::attend(&mut self);
            if take_attention() || !self.entered {
                self.load_interrupts();
            }
            let suspected = self.vm.suspicion.is_held() || self.mmu.is_undecided();
            if core::mem::replace(&mut self.suspected, suspected) != suspected {
                vcpu::trap_translation_controls(suspected);
            }
            let exit = vcpu::enter(&mut self.registers);
            flow = self.handle(exit);
        }
        self.with_gic(|_| {});
        vcpu::reset_timers();
        *self.vm.vcpus[self.index].power.lock() = Power::Off;
        takeover::suspect(self.vm);
        // The VM's first CPU waits for the others before it goes on with the end of the VM.
        machine::gic().kick(self.vm.vcpus[0].cpu);
    }

    fn handle(&mut self, exit: Exit) -> Flow {
        match exit {
            Exit::Interrupt => {
                self.vm.exits.count(Reason::Interrupt);
                interrupts::service(Some(self));
                Flow::Continue
            }
            Exit::Synchronous { esr, far, hpfar } => emulate::trap(self, esr, far, hpfar),
            Exit::Stale => {
                // The guest tries again.
                self.vm.exits.count(Reason::Abort);
                Flow::Continue
            }
            Exit::SystemError => {
                self.vm.exits.count(Reason::SystemError);
                let name = self.vm.name();
                let text = format_args!("{name}: asynchronous external abort");
                self.vm.say(log::Level::Warn, Say::IfRoom, text);
                teardown::begin(self.vm, platform::report::Cause::Fault);
                Flow::Continue
            }
        }
    }

    /// Works on the VM's interrupt controller with the state of this CPU's list registers in it.
    pub fn with_gic<R>(&mut self, work: impl FnOnce(&mut Vgic<machine::VmInterrupts>) -> R) -> R {
        let mut gic = self.vm.vgic.lock();
        self.store_interrupts(&mut gic);
        work(&mut gic)
    }

    /// Puts the VM's interrupt controller back to its state at a cold boot. Its other CPUs lose what is in their list
    /// registers as soon as they take notice.
    pub fn reset_interrupts(&mut self) {
        let vm = self.vm;
        // With the UART locked: its line keeps its level.
        let uart = vm.uart.lock();
        let mut gic = vm.vgic.lock();
        self.entered = false;
        gic.reset();
        gic.set_line(PL011_INTERRUPT.intid, uart.interrupt());
        gic::reset_virtual_interface();
        vm.vcpus.iter().for_each(|vcpu| machine::demand_attention(vcpu.cpu));
    }

    fn store_interrupts(&mut self, gic: &mut Vgic<machine::VmInterrupts>) {
        if !core::mem::take(&mut self.entered) {
            return;
        }
        for index in 0..self.lists.used {
            self.lists.lr[index] = gic::read_list_register(index);
        }
        self.lists.vmcr = gic::virtual_machine_control();
        self.lists.hcr = gic::virtual_control();
        gic.leave(self.index, &self.lists);
    }

    fn load_interrupts(&mut self) {
        let mut gic = self.vm.vgic.lock();
        self.store_interrupts(&mut gic);
        let written = gic.enter(self.index, &mut self.lists);
        for index in 0..written {
            gic::write_list_register(index, self.lists.lr[index]);
        }
        gic::set_virtual_control(self.lists.hcr);
        self.entered = true;
    }

    /// Whether an interrupt waits for this CPU: a physical one for EL2, or one in its list registers.
    pub fn interrupt_pending(&self) -> bool {
        self.lists.lr[..self.lists.used].iter().any(|lr| lr >> 62 & 1 != 0) || !self.entered
    }
}
