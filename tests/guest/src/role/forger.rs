//! The forger: a driver that lies to its SMMU. It names memory, tags and streams that are not its own wherever a
//! structure has room for them, never stops issuing commands, ignores its event queue, and rewrites from a second
//! CPU what the first one just told the SMMU to read. Nobody but itself may notice.

mod disturb;

use core::fmt::Arguments;

use super::smmu::expected::{self, Verdict};
use super::{Check, device_works, done, memory, refused};
use crate::arch::{cpu, mem};
use crate::edu::{BUFFER_SIZE, Edu, Operation, Transfer};
use crate::machine::Machine;
use crate::pci::{Bus, COMMAND_BUS_MASTER};
use crate::smmu::format::{
    self, ALLOCATE, Ste, cerror, command, cr0, gbpa, gerror, register, stage1, ste,
};
use crate::smmu::{self, Commands, Events, Pool, Registers, Smmu, Stage1, Stopped};
use crate::smp::{self, Order};
use crate::timer::{self, Deadline};
use crate::{gic, println};

use disturb::Disturbance;
pub use disturb::disturb;

/// Bytes of one DMA: 16 accesses.
const SIZE: u64 = 64;
/// Where the device sees its page.
const IOVA: u64 = 0x12_3456_7000;
/// Where it sees what is not its own.
const FORGED: u64 = IOVA + 0x40_0000;
const POISON: u32 = 0x0bad_0000;
const CANARY_SEED: u32 = 0xf09e_0000;
const ASID: u16 = 0x66;
/// How long each disturbance lasts.
const DISTURBED_MS: u64 = 1000;

/// Addresses that are not the guest's memory, besides those that follow its RAM: the interrupt controller, the SMMU
/// itself, nothing, the device's own registers, configuration space, and the last 64 bytes of spaces of 40, 44, 48
/// and 56 bits.
const FOREIGN: [u64; 10] = [
    0x0800_0000,
    0x0905_0000,
    0x0b00_0000,
    0x1000_0000,
    0x40_1000_0000,
    0xff_ffff_ffc0,
    0x100_0000_0000,
    0xfff_ffff_ffc0,
    0xffff_ffff_ffc0,
    0x00ff_ffff_ffff_ffc0,
];

/// VMIDs and StreamIDs of other VMs, and of nobody: the victim's VMID, its stream, and the largest.
const OTHERS: [u64; 3] = [1, 8, 0xffff];

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    gic::start(machine);
    cpu::unmask_interrupts();
    for page in memory::canary_pages(machine)? {
        memory::fill(page, memory::PAGE, memory::noise(CANARY_SEED ^ page as u32));
    }
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = smmu::stream_id(machine, edu.function)?;
    let registers = Registers::find(machine)?;
    if registers.identity().stage2() {
        return Err("the forger needs a hypervisor: a bare SMMU believes it");
    }
    println!("@iommu smmu=virtual");
    let mut closed = Check::new("closed-until-its-ste");
    closed.same(registers.read(register::GBPA) & gbpa::ABORT, gbpa::ABORT);
    nothing_passes(machine, edu, &mut closed)?;
    let mut pool = Pool::new(machine);
    let mut smmu = Smmu::start_linear(registers, &mut pool)?;
    nothing_passes(machine, edu, &mut closed)?;
    drop(closed);
    smmu.drop_events();
    smmu.set_ste(sid, &ste::PASS)?;
    device_works(machine, edu)?;
    let stage1 = Stage1::new(&mut pool, ASID)?;
    stage1.map(&mut pool, IOVA, memory::dma_page(machine, 1))?;
    let mut forger = Forger { machine, edu, sid, pool, smmu, stage1 };

    forger.contexts()?;
    forger.tables()?;
    forger.targets()?;
    forger.stream_tables()?;
    forger.queues()?;
    forger.entries()?;
    forger.messages()?;
    forger.commands()?;
    forger.storm()?;
    if machine.cpus > 1 {
        smp::start(machine, 1).map_err(|_| "the second CPU does not start")?;
        forger.races()?;
        forger.loops()?;
        forger.toggles()?;
    }
    forger.smmu.set_ste(sid, &ste::PASS)?;
    device_works(machine, edu)?;
    let mut canaries = Check::new("canaries");
    for page in memory::canary_pages(machine)? {
        let wanted = memory::noise(CANARY_SEED ^ page as u32);
        canaries.same(memory::first_change(page, memory::PAGE, wanted), None);
    }
    drop(canaries);
    edu.function.disable(COMMAND_BUS_MASTER);
    done("forger");
    Ok(())
}

/// Its manifest says `dma-at-boot = "abort"` and `reopen = "smmu"`: bus mastering alone lets nothing through, and neither
/// does an SMMU that has no STE for the device.
fn nothing_passes(machine: &Machine, edu: Edu, check: &mut Check) -> Result<(), &'static str> {
    let page = memory::dma_page(machine, 1);
    memory::fill(page, SIZE, memory::noise(POISON));
    refused(edu, Transfer { operation: Operation::Write, address: page, size: SIZE })?;
    let kept = memory::matching(page, SIZE, memory::noise(POISON));
    check.that(kept == SIZE / 4, format_args!("{} accesses arrived", SIZE / 4 - kept));
    Ok(())
}

struct Forger<'a> {
    machine: &'a Machine,
    edu: Edu,
    sid: u32,
    pool: Pool,
    smmu: Smmu,
    stage1: Stage1,
}

impl Forger<'_> {
    fn foreign(&self) -> impl Iterator<Item = u64> + use<> {
        let end = self.machine.ram.end;
        // Behind own RAM a guest that is confined finds nothing; one that is not finds others, and EL2's tables.
        FOREIGN.into_iter().chain([end, end + (64 << 20), 0x4fc0_0000])
    }

    /// The device writes to `address`, and is stopped.
    fn is_stopped(
        &mut self,
        check: &mut Check,
        address: u64,
        what: Arguments<'_>,
    ) -> Result<(), &'static str> {
        let page = memory::dma_page(self.machine, 1);
        memory::fill(page, SIZE, memory::noise(POISON));
        refused(self.edu, Transfer { operation: Operation::Write, address, size: SIZE })?;
        let kept = memory::matching(page, SIZE, memory::noise(POISON));
        check.that(kept == SIZE / 4, format_args!("{what}: it went to the guest's page"));
        // Whatever the guest hears of it: the queue still works.
        self.smmu.drop_events();
        Ok(())
    }

    /// The device writes to `address`, which may or may not lead to its page, and never anywhere else.
    fn tries(&self, operation: Operation, address: u64, size: u64) -> Result<(), &'static str> {
        self.edu.transfer(Transfer { operation, address, size })?;
        println!(
            "@tried device={} op={operation} address={address:#x} accesses={} arrived=0 to=anywhere",
            self.edu.function,
            size / 4
        );
        Ok(())
    }

    /// CDs that are not the guest's.
    fn contexts(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-contexts");
        for address in self.foreign() {
            let ste = ste::stage1(address & 0x00ff_ffff_ffff_ffc0);
            self.smmu.set_ste(self.sid, &ste)?;
            self.is_stopped(&mut check, IOVA, format_args!("a CD at {address:#x}"))?;
        }
        Ok(())
    }

    /// Roots and tables of stage 1 that are not the guest's.
    fn tables(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-tables");
        let (sid, asid) = (self.sid, self.stage1.asid);
        self.smmu.set_ste(sid, &ste::stage1(self.stage1.context))?;
        let forget = [command::cfgi_cd_all(sid), command::tlbi_nh_asid(asid), command::SYNC];
        for address in self.foreign() {
            let root = address & 0x000f_ffff_ffff_f000;
            self.stage1.write_context(&format::context(root, asid));
            self.smmu.issue(&forget)?;
            self.is_stopped(&mut check, IOVA, format_args!("a root at {address:#x}"))?;
        }
        self.stage1.write_context(&format::context(self.stage1.root, asid));
        let entry = self.stage1.root + 8 * stage1::index(FORGED, 1);
        let own = mem::read64(entry);
        for address in self.foreign().step_by(2) {
            mem::write64(entry, address & 0x0000_ffff_ffff_f000 | stage1::TABLE);
            self.smmu.issue(&forget)?;
            self.is_stopped(&mut check, FORGED, format_args!("a table at {address:#x}"))?;
        }
        mem::write64(entry, own);
        self.smmu.issue(&forget)
    }

    /// Pages of stage 1 that are not the guest's: what comes out of its stage 1 goes through stage 2 as well.
    fn targets(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-pages");
        let foreign = self.foreign().filter(|address| address >> 48 == 0);
        for (index, address) in foreign.enumerate() {
            let iova = FORGED + 0x1000 * index as u64;
            self.stage1.map(&mut self.pool, iova, address)?;
            self.is_stopped(&mut check, iova, format_args!("a page at {address:#x}"))?;
        }
        Ok(())
    }

    /// Stream tables, and second levels of them, that are not the guest's.
    fn stream_tables(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-stream-tables");
        let registers = self.smmu.registers;
        let enabled = cr0::CMDQEN | cr0::EVENTQEN;
        let log2 = registers.identity().table_log2();
        // Their own level 1, then that too is forged; a size beyond all StreamIDs, and a reserved format.
        let level1 = self.pool.take(4096)?;
        let config = format::strtab_cfg::two_level(log2, 6);
        for (number, address) in self.foreign().enumerate() {
            for index in 0..1 << (log2 - 6) {
                let descriptor = address & 0x00ff_ffff_ffff_ffc0 | 7;
                mem::write64(level1 + 8 * index, descriptor);
            }
            let forms = [
                (level1, config),
                (address, config),
                (address, log2),
                (address, 0x3f),
                (address, 0x1_0fff),
                (address, 0x3_07ff),
            ];
            let (base, config) = forms[number % forms.len()];
            // A device that cannot start DMA is left alone when the SMMU is disabled.
            self.edu.function.disable(COMMAND_BUS_MASTER);
            registers.set_cr0(enabled)?;
            registers.pass_while_disabled()?;
            registers.write64(register::STRTAB_BASE, ALLOCATE | base & 0x00ff_ffff_ffff_ffc0);
            registers.write(register::STRTAB_BASE_CFG, config);
            registers.set_cr0(enabled | cr0::SMMUEN)?;
            let all = [command::CFGI_ALL, command::cfgi_ste(self.sid, false), command::SYNC];
            self.smmu.issue(&all)?;
            self.edu.function.enable(COMMAND_BUS_MASTER);
            self.is_stopped(&mut check, IOVA, format_args!("a stream table at {address:#x}"))?;
        }
        registers.set_cr0(enabled)?;
        self.smmu.table.install(registers);
        registers.set_cr0(enabled | cr0::SMMUEN)?;
        self.edu.function.enable(COMMAND_BUS_MASTER);
        self.smmu.set_ste(self.sid, &ste::PASS)
    }

    /// Queues that are not the guest's: they stop, and take or leave nothing there.
    fn queues(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-queues");
        let registers = self.smmu.registers;
        for address in self.foreign() {
            for log2 in [0, 8, 31] {
                registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
                let size = 16 << log2.min(8);
                Commands::at(address & !(size - 1), log2).install(registers);
                registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
                registers.write(register::CMDQ_PROD, 1);
                let stopped = |_| registers.errors() & gerror::CMDQ_ERR != 0;
                let error = registers.poll(register::GERROR, stopped);
                let code = registers.read(register::CMDQ_CONS) >> 24;
                check.that(
                    error && code == cerror::ABT,
                    format_args!("commands at {address:#x}: {code}"),
                );
                registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
                registers.acknowledge_errors();
            }
        }
        self.smmu.commands.install(registers);
        registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
        self.smmu.set_ste(self.sid, &ste::INVALID)?;
        for address in self.foreign().step_by(3) {
            registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
            Events::at(address & !0x1f, 31).install(registers);
            registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
            refused(self.edu, Transfer { operation: Operation::Write, address: IOVA, size: SIZE })?;
            let aborted = |_| registers.errors() & gerror::EVENTQ_ABT_ERR != 0;
            let error = registers.poll(register::GERROR, aborted);
            check.that(error, format_args!("events at {address:#x}: no error"));
            registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
            registers.acknowledge_errors();
        }
        self.smmu.events.install(registers);
        registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)
    }

    /// STEs with everything in them that is not for a guest without stage 2, ATS and stalls.
    fn entries(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-entries");
        let to = memory::dma_page(self.machine, 1);
        // S2VMID, S2T0SZ to S2R, S2TTB at the hypervisor, and all that is reserved.
        let stage2: [u64; 2] = [u64::MAX, 0x0000_4fc0_0000_0000 | 0x4008_0000];
        let with = |base: Ste, word: usize, bits: u64| {
            let mut ste = base;
            ste[word] |= bits;
            ste
        };
        let nested = ste::stage1(self.stage1.context);
        let everything = |base: Ste| {
            let mut ste = base;
            ste[2..4].copy_from_slice(&stage2);
            ste[4..].fill(u64::MAX);
            ste
        };
        const CONFIG: u64 = 0b111 << 1;
        let config =
            |value: u64| with([1, 0, 0, 0, 0, 0, 0, 0], 0, value << 1 | self.stage1.context);
        let cases: [(&str, Ste, Outcome); 16] = [
            ("stage 2 and reserved words beside bypass", everything(ste::PASS), Outcome::Passes),
            ("stage 2 and reserved words beside stage 1", everything(nested), Outcome::Translates),
            ("stage 2 and reserved words beside abort", everything(ste::ABORT), Outcome::Stopped),
            ("EATS of full ATS", with(nested, 1, 1 << 28), Outcome::Translates),
            ("EATS of split-stage ATS", with(nested, 1, 2 << 28), Outcome::Either),
            ("EATS reserved", with(ste::PASS, 1, 3 << 28), Outcome::Either),
            ("STRW of EL2", with(nested, 1, 2 << 30), Outcome::Either),
            ("STRW of EL3", with(nested, 1, 1 << 30), Outcome::Either),
            ("S1STALLD", with(nested, 1, 1 << 27), Outcome::Stopped),
            ("substreams", with(nested, 0, 0x1f << 59 | 3 << 4), Outcome::Either),
            ("S1DSS reserved", with(nested, 1, 3), Outcome::Either),
            ("attributes of everything", with(ste::PASS, 1, 0x000f_ffff << 32), Outcome::Either),
            ("stage 2 only", everything(config(0b110)), Outcome::Stopped),
            ("both stages", everything(config(0b111)), Outcome::Stopped),
            ("an abort with everything", with(everything(nested), 0, 0), Outcome::Either),
            (
                "invalid with everything",
                {
                    let mut ste = [u64::MAX; 8];
                    ste[0] &= !1;
                    ste
                },
                Outcome::Stopped,
            ),
        ];
        for (name, ste, outcome) in cases {
            self.smmu.set_ste(self.sid, &ste)?;
            match outcome {
                Outcome::Stopped => self.is_stopped(&mut check, IOVA, format_args!("{name}"))?,
                Outcome::Passes => self.arrives(&mut check, to, to, format_args!("{name}"))?,
                Outcome::Translates => {
                    self.arrives(&mut check, IOVA, to, format_args!("{name}"))?
                }
                Outcome::Either => self.tries(Operation::Write, IOVA, SIZE)?,
            }
            self.smmu.drop_events();
        }
        // Every other bit, one at a time; the device is silent meanwhile.
        for base in [ste::PASS, nested, ste::ABORT, ste::stage1(0)] {
            for bit in 0..512 {
                let ste = with(base, bit / 64, 1 << (bit % 64));
                let ste = if ste[0] & CONFIG == base[0] & CONFIG { ste } else { everything(ste) };
                self.smmu.set_ste(self.sid, &ste)?;
            }
        }
        self.smmu.set_ste(self.sid, &ste::PASS)
    }

    fn arrives(
        &self,
        check: &mut Check,
        address: u64,
        to: u64,
        what: Arguments<'_>,
    ) -> Result<(), &'static str> {
        let transfer = Transfer { operation: Operation::Write, address, size: SIZE };
        memory::fill(to, SIZE, memory::noise(POISON));
        self.edu.transfer(transfer)?;
        let kept = memory::matching(to, SIZE, memory::noise(POISON));
        let arrived = SIZE / 4 - kept;
        println!(
            "@tried device={} op=write address={address:#x} accesses={} arrived={arrived} to={to:#x}",
            self.edu.function,
            SIZE / 4
        );
        check.that(kept == 0, format_args!("{what}: {arrived} accesses arrived"));
        Ok(())
    }

    /// Messages to memory that is not the guest's, or is: none is ever sent without `IDR0.MSI`.
    fn messages(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-messages");
        let registers = self.smmu.registers;
        let own = memory::dma_page(self.machine, 2);
        memory::fill(own, memory::PAGE, memory::noise(POISON));
        for address in self.foreign().chain([own]) {
            for at in [register::GERROR_IRQ_CFG0, register::EVENTQ_IRQ_CFG0] {
                registers.write64(at, address & !3);
                registers.write(at + 8, 0x4d53_4900);
                registers.write(at + 12, 0x1f);
            }
            let data = 0x4d53_4901 << 32;
            let sync = [0x46 | 1 << 12 | 0x3f << 22 | data, address & 0x000f_ffff_ffff_fffc];
            // And one whose error would be told by a message.
            registers.set_irq_ctrl(0b101)?;
            self.smmu.issue(&[sync, sync])?;
            let index = self.smmu.commands.prod();
            let seen = self.smmu.commands.issue(registers, &[[0xff, 0]]);
            check.that(seen.is_err(), format_args!("opcode 0xff is legal"));
            self.smmu.commands.put(index, sync);
            registers.acknowledge_errors();
            check.same(self.smmu.commands.wait(registers), Ok(()));
            registers.set_irq_ctrl(0)?;
        }
        check.same(memory::first_change(own, memory::PAGE, memory::noise(POISON)), None);
        Ok(())
    }

    /// Every command with tags and streams of other VMs, those of EL2, EL3, the Secure state, ATS, PRI and stalls among
    /// them: each is consumed or stops the queue as it does for a guest that is alone, and leaves what the guest has
    /// as it is.
    fn commands(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("forged-commands");
        let to = memory::dma_page(self.machine, 1);
        self.smmu.set_ste(self.sid, &ste::stage1(self.stage1.context))?;
        let registers = self.smmu.registers;
        let commands = &mut self.smmu.commands;
        for opcode in 0..=0xff {
            for other in OTHERS {
                for secure in [0, 1 << 10] {
                    let words = [opcode | secure | other << 32 | u64::from(ASID) << 48, 0];
                    let at = (commands.prod() + 1) & (2 * commands.size() - 1);
                    let seen = commands.issue(registers, &[command::SYNC, words, command::SYNC]);
                    let stopped = Stopped { cons: at, code: cerror::ILL, error: true };
                    let right = match expected::command(words, registers.identity()).0 {
                        Verdict::Legal => seen == Ok(()),
                        Verdict::Illegal => seen == Err(stopped),
                        Verdict::Unpredictable => seen == Ok(()) || seen == Err(stopped),
                    };
                    check.that(right, format_args!("{words:x?}: {seen:x?}"));
                    if seen.is_err() {
                        commands.put(at, command::SYNC);
                        registers.acknowledge_errors();
                        commands.wait(registers).map_err(|_| "a repaired queue does not go on")?;
                    }
                }
            }
        }
        self.arrives(&mut check, IOVA, to, format_args!("after all of them"))?;
        self.smmu.set_ste(self.sid, &ste::PASS)
    }

    /// Events without end in a queue of two entries that nobody reads.
    fn storm(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("an-event-storm-is-nobody-elses");
        let registers = self.smmu.registers;
        registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
        Events::at(self.pool.take(64)?, 1).install(registers);
        registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN | cr0::EVENTQEN)?;
        self.smmu.set_ste(self.sid, &ste::INVALID)?;
        for round in 0..8 {
            let page = memory::dma_page(self.machine, 3);
            memory::fill(page, BUFFER_SIZE, memory::noise(POISON));
            let size = BUFFER_SIZE;
            refused(self.edu, Transfer { operation: Operation::Write, address: page, size })?;
            let kept = memory::matching(page, BUFFER_SIZE, memory::noise(POISON));
            check.that(kept == BUFFER_SIZE / 4, format_args!("round {round} reached memory"));
            // Its commands are served all the same.
            check.same(self.smmu.issue(&[command::TLBI_NSNH_ALL, command::SYNC]), Ok(()));
        }
        registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
        self.smmu.events.install(registers);
        registers.acknowledge_errors();
        registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN | cr0::EVENTQEN)
    }

    /// The second CPU rewrites STEs, CDs, tables and commands while this one has them read.
    fn races(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("structures-change-while-they-are-read");
        let sid = self.sid;
        let registers = self.smmu.registers;
        let queue = self.pool.take(4096)?;
        registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
        let mut commands = Commands::at(queue, 8);
        commands.install(registers);
        registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
        let disturbance = Disturbance::Structures {
            ste: self.smmu.table.entry(sid),
            context: self.stage1.context,
            table: self.stage1.root,
            queue,
        };
        let other = disturbance.begin(self.machine);
        let mut batches = 0_u32;
        let end = Deadline::after_ms(DISTURBED_MS);
        while !end.passed() {
            self.edu.prepare(Transfer { operation: Operation::Write, address: IOVA, size: SIZE });
            self.edu.start(Operation::Write, false);
            while self.edu.is_busy() {
                let batch = [
                    command::cfgi_ste(sid, true),
                    command::SYNC,
                    command::cfgi_cd(sid),
                    command::cfgi_ste_range(sid, 3),
                    command::tlbi_nh_va(ASID, IOVA, true),
                    command::CFGI_ALL,
                    command::SYNC,
                ];
                // The other CPU makes some of them illegal, which stops the queue until it is acknowledged.
                if commands.issue(registers, &batch).is_err() {
                    registers.acknowledge_errors();
                }
                batches += 1;
                while self.smmu.next_event().is_some() {}
            }
            println!(
                "@tried device={} op=write address={IOVA:#x} accesses={} arrived=0 to=anywhere",
                self.edu.function,
                SIZE / 4
            );
        }
        check.that(other.end(self.machine), format_args!("the second CPU does not stop"));
        check.that(batches > 10, format_args!("only {batches} batches"));
        self.restore()
    }

    /// Commands without end: both CPUs move the queue's index all the time.
    fn loops(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("commands-without-end");
        let registers = self.smmu.registers;
        let queue = self.pool.take(4096)?;
        for command in [command::CFGI_ALL, command::TLBI_NSNH_ALL, command::SYNC] {
            registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
            let mut commands = Commands::at(queue, 8);
            commands.install(registers);
            for index in 0..256 {
                commands.put(index, command);
            }
            registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
            let other = Disturbance::Producer { registers }.begin(self.machine);
            let end = Deadline::after_ms(DISTURBED_MS / 3);
            let (mut moved, mut rounds, mut last) = (0_u32, 0_u32, 0);
            while !end.passed() {
                registers.write(register::CMDQ_PROD, rounds.wrapping_mul(0x55) & 0x1ff);
                let now = registers.read(register::CMDQ_CONS) & 0x1ff;
                moved += u32::from(now != last);
                (rounds, last) = (rounds.wrapping_add(1), now);
            }
            check.that(moved > 1, format_args!("{command:x?} is not consumed"));
            check.that(other.end(self.machine), format_args!("the second CPU does not stop"));
        }
        self.restore()
    }

    /// The second CPU enables and disables everything while this one issues commands.
    fn toggles(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("enables-that-change-all-the-time");
        self.edu.function.disable(COMMAND_BUS_MASTER);
        let registers = self.smmu.registers;
        let other = Disturbance::Enables { registers }.begin(self.machine);
        let end = Deadline::after_ms(DISTURBED_MS);
        let mut batches = 0_u32;
        while !end.passed() {
            self.smmu.commands.write(&[command::CFGI_ALL, command::TLBI_NSNH_ALL, command::SYNC]);
            self.smmu.commands.ring(registers);
            registers.write(register::GBPA, gbpa::UPDATE | batches << 20 & gbpa::ABORT);
            registers.acknowledge_errors();
            batches += 1;
        }
        check.that(other.end(self.machine), format_args!("the second CPU does not stop"));
        check.that(batches > 10, format_args!("only {batches} batches"));
        self.edu.function.enable(COMMAND_BUS_MASTER);
        self.restore()
    }

    /// Back to an SMMU as a driver would have it.
    fn restore(&mut self) -> Result<(), &'static str> {
        self.stage1.write_context(&format::context(self.stage1.root, ASID));
        let Smmu { registers, commands, events, table } = self.smmu;
        table.write(self.sid, &ste::PASS);
        self.smmu = Smmu::start(registers, commands, events, table)?;
        self.edu.function.enable(COMMAND_BUS_MASTER);
        timer::poll_every_ms(1, Deadline::after_ms(20), || false);
        self.smmu.drop_events();
        Ok(())
    }
}

/// What has to become of DMA.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It goes to the address itself.
    Passes,
    /// It goes where stage 1 leads.
    Translates,
    /// It is stopped.
    Stopped,
    /// It is stopped, or goes where stage 1 leads.
    Either,
}
