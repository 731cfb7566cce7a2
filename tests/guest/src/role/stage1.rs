//! The stage-1 suite: an edu device behind the guest's own stream table, CDs and translation tables. Every change
//! is followed by DMA that must or must not arrive, and what is refused must be the guest's own event.

use core::fmt::Arguments;

use super::{Check, done, memory, refused};
use crate::edu::{Edu, Operation, Transfer};
use crate::machine::Machine;
use crate::pci::{Bus, COMMAND_BUS_MASTER};
use crate::println;
use crate::smmu::format::{self, Command, Identity, command, event, stage1, ste};
use crate::smmu::{self, Pool, Registers, Shape, Smmu, Stage1};
use crate::timer::{self, Deadline};

/// Bytes of one DMA: 16 accesses.
const SIZE: u64 = 64;
/// Where the device sees its pages: nothing else of the machine has such addresses.
const IOVA: u64 = 0x12_3456_7000;
const READ_ONLY: u64 = IOVA + 0x1000;
const UNMAPPED: u64 = IOVA + 0x20_0000;
/// Where no machine has memory.
const NOWHERE: u64 = 0x0b00_0000;
/// What the device's buffer holds, and what its targets hold before.
const DATA: u32 = 0xda7a;
const POISON: u32 = 0x5050;
const ASID: u16 = 0x51;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = smmu::stream_id(machine, edu.function)?;
    let registers = Registers::find(machine)?;
    let identity = registers.identity();
    // No guest of Portcullis is told of a stage 2.
    println!("@iommu smmu={}", if identity.stage2() { "bare" } else { "virtual" });
    let mut pool = Pool::new(machine);
    let smmu = Smmu::start_linear(registers, &mut pool)?;
    let stage1 = Stage1::new(&mut pool, ASID)?;
    let mut suite = Suite { machine, edu, sid, identity, pool, smmu, stage1 };

    suite.translates()?;
    suite.faults()?;
    suite.invalidates()?;
    suite.contexts()?;
    suite.bad_contexts()?;
    suite.bypasses_and_aborts()?;
    suite.changes_hitlessly()?;
    suite.small_table()?;
    suite.two_levels()?;
    suite.bypasses_from_the_start()?;
    done("stage1");
    Ok(())
}

struct Suite<'a> {
    machine: &'a Machine,
    edu: Edu,
    sid: u32,
    identity: Identity,
    pool: Pool,
    smmu: Smmu,
    stage1: Stage1,
}

impl Suite<'_> {
    fn page(&self, index: u64) -> u64 {
        memory::dma_page(self.machine, index)
    }

    /// Lets the device do what must work, to the page at `to`; says how many accesses arrived.
    fn transfer(&self, operation: Operation, address: u64, to: u64) -> Result<u64, &'static str> {
        let transfer = Transfer { operation, address, size: SIZE };
        let arrived = match operation {
            Operation::Write => {
                memory::fill(to, SIZE, memory::noise(POISON));
                self.edu.transfer(transfer)?;
                memory::matching(to, SIZE, memory::noise(DATA))
            }
            Operation::Read => {
                // What it read shows when it writes it.
                memory::fill(to, SIZE, memory::noise(DATA));
                self.edu.transfer(transfer)?;
                transfer.accesses()
            }
        };
        self.testify(transfer, arrived, to);
        Ok(arrived)
    }

    fn testify(&self, transfer: Transfer, arrived: u64, to: u64) {
        println!(
            "@tried device={} op={} address={:#x} accesses={} arrived={arrived} to={to:#x}",
            self.edu.function,
            transfer.operation,
            transfer.address,
            transfer.accesses()
        );
    }

    /// The device's writes to `address` arrive at `to`.
    fn arrives(
        &self,
        check: &mut Check,
        address: u64,
        to: u64,
        when: Arguments<'_>,
    ) -> Result<(), &'static str> {
        let arrived = self.transfer(Operation::Write, address, to)?;
        check.that(arrived == SIZE / 4, format_args!("{when}: {arrived} accesses arrived"));
        Ok(())
    }

    /// The device's writes to `address` are stopped, and the page at `to` stays as it is.
    fn is_stopped(
        &self,
        check: &mut Check,
        address: u64,
        to: u64,
        when: Arguments<'_>,
    ) -> Result<(), &'static str> {
        memory::fill(to, SIZE, memory::noise(POISON));
        refused(self.edu, Transfer { operation: Operation::Write, address, size: SIZE })?;
        let kept = memory::matching(to, SIZE, memory::noise(POISON));
        check.that(kept == SIZE / 4, format_args!("{when}: {} accesses arrived", SIZE / 4 - kept));
        Ok(())
    }

    /// What was just stopped is the guest's event of this kind, and nothing else is.
    fn is_event(&mut self, check: &mut Check, kinds: &[u8], address: u64, read: bool) {
        let Some(first) = self.smmu.wait_for_event() else {
            check.that(false, format_args!("no event of kind {kinds:x?} at {address:#x}"));
            return;
        };
        timer::poll_every_ms(1, Deadline::after_ms(20), || false);
        let mut next = Some(first);
        while let Some(event) = next {
            let named = kinds.contains(&event.kind()) && event.sid() == self.sid;
            check.that(named, format_args!("{event:x?} instead of kind {kinds:x?}"));
            if event.kind() >= event::F_WALK_EABT {
                let here = (address..address + SIZE).contains(&event.input());
                check
                    .that(here && event.read() == read, format_args!("{event:x?} at {address:#x}"));
                check.that(!event.stage2(), format_args!("{event:x?} is of stage 2"));
            }
            if event.kind() >= event::F_TRANSLATION {
                // Stage 1 knows no other address.
                check.that(event.other() == 0, format_args!("{event:x?} has a further address"));
            }
            next = self.smmu.next_event();
        }
    }

    /// Nothing was recorded.
    fn is_silent(&mut self, check: &mut Check) {
        timer::poll_every_ms(1, Deadline::after_ms(20), || false);
        let event = self.smmu.next_event();
        check.that(event.is_none(), format_args!("{event:x?}"));
        self.smmu.drop_events();
    }

    /// A page that is mapped is reached through it, and no other.
    fn translates(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("stage-1-translates");
        let (source, target) = (self.page(0), self.page(1));
        self.stage1.map(&mut self.pool, IOVA, source)?;
        self.smmu.set_ste(self.sid, &ste::stage1(self.stage1.context))?;
        self.transfer(Operation::Read, IOVA, source)?;
        self.stage1.map(&mut self.pool, IOVA + 0x3000, target)?;
        self.arrives(&mut check, IOVA + 0x3000, target, format_args!("a mapped page"))?;
        // A page that the device has under two names.
        self.stage1.map(&mut self.pool, IOVA + 0x4000, target)?;
        self.arrives(&mut check, IOVA + 0x4000, target, format_args!("its second name"))?;
        self.is_silent(&mut check);
        Ok(())
    }

    /// What stage 1 refuses is the guest's event, with its StreamID and the device's address.
    fn faults(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("stage-1-faults-are-the-guests");
        let target = self.page(1);
        self.is_stopped(&mut check, UNMAPPED, target, format_args!("an unmapped page"))?;
        self.is_event(&mut check, &[event::F_TRANSLATION], UNMAPPED, false);
        let read_only = target | stage1::PAGE | stage1::READ_ONLY;
        self.stage1.set(&mut self.pool, READ_ONLY, read_only)?;
        self.is_stopped(&mut check, READ_ONLY, target, format_args!("a read-only page"))?;
        self.is_event(&mut check, &[event::F_PERMISSION], READ_ONLY, false);
        // The device's own address would be inside RAM: stage 1 alone counts.
        self.is_stopped(&mut check, target, target, format_args!("an address of RAM"))?;
        self.is_event(&mut check, &[event::F_TRANSLATION], target, false);
        let read = Transfer { operation: Operation::Read, address: UNMAPPED, size: SIZE };
        refused(self.edu, read)?;
        self.is_event(&mut check, &[event::F_TRANSLATION], UNMAPPED, true);
        // It left zeros in the device.
        self.transfer(Operation::Read, IOVA, self.page(0))?;
        // A table that is nowhere: the walk fails.
        let root = smmu::format::stage1::TABLE | NOWHERE;
        let other = UNMAPPED + (1 << 30);
        crate::arch::mem::write64(self.stage1.root + 8 * stage1::index(other, 1), root);
        self.smmu.issue(&[command::TLBI_NSNH_ALL, command::SYNC])?;
        self.is_stopped(&mut check, other, target, format_args!("a table that is nowhere"))?;
        self.is_event(&mut check, &[event::F_WALK_EABT], other, false);
        crate::arch::mem::write64(self.stage1.root + 8 * stage1::index(other, 1), 0);
        Ok(())
    }

    /// After an unmap and any invalidation that covers it, the page is out of reach; the next one is not affected.
    fn invalidates(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("an-unmapped-page-is-out-of-reach");
        let pages = [self.page(2), self.page(3)];
        let iova = IOVA + 0x10_0000;
        let by_va = |low: u64, high: u64| [low, iova & !0xfff | high];
        let asid = u64::from(ASID) << 48;
        let one_of_range = by_va(0x12 | asid | 1 << 12, 1 << 10 | 3 << 8 | 1);
        let ways: [(&str, Command); 7] = [
            ("NH_VA leaf", command::tlbi_nh_va(ASID, iova, true)),
            ("NH_VA", command::tlbi_nh_va(ASID, iova, false)),
            ("NH_VAA", by_va(0x13, 0)),
            ("NH_ASID", command::tlbi_nh_asid(ASID)),
            ("NH_ALL", [0x10, 0]),
            ("NSNH_ALL", command::TLBI_NSNH_ALL),
            // Two granules of 4 KiB.
            ("NH_VA range", one_of_range),
        ];
        for (index, (name, invalidation)) in ways.into_iter().enumerate() {
            if index == 6 && !self.identity.ranges() {
                continue;
            }
            let to = pages[index % 2];
            self.stage1.map(&mut self.pool, iova, to)?;
            self.arrives(&mut check, iova, to, format_args!("before {name}"))?;
            self.stage1.set(&mut self.pool, iova, 0)?;
            self.smmu.issue(&[invalidation, command::SYNC])?;
            self.is_stopped(&mut check, iova, to, format_args!("after {name}"))?;
            self.is_event(&mut check, &[event::F_TRANSLATION], iova, false);
        }
        Ok(())
    }

    /// A CD that changes, and a stream that gets another one.
    fn contexts(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("contexts-change");
        let (first, second) = (self.page(2), self.page(3));
        let iova = IOVA + 0x20_0000;
        let other = Stage1::new(&mut self.pool, ASID + 1)?;
        self.stage1.map(&mut self.pool, iova, first)?;
        other.map(&mut self.pool, iova, second)?;
        self.arrives(&mut check, iova, first, format_args!("the first context"))?;
        // By another S1ContextPtr.
        self.smmu.set_ste(self.sid, &ste::stage1(other.context))?;
        self.arrives(&mut check, iova, second, format_args!("another context"))?;
        // By another root in the same CD.
        for (cfgi, root, to) in [
            (command::cfgi_cd(self.sid), self.stage1.root, first),
            (command::cfgi_cd_all(self.sid), other.root, second),
        ] {
            other.write_context(&format::context(root, other.asid));
            self.smmu.issue(&[cfgi, command::tlbi_nh_asid(other.asid), command::SYNC])?;
            self.arrives(&mut check, iova, to, format_args!("another root"))?;
        }
        self.smmu.set_ste(self.sid, &ste::stage1(self.stage1.context))?;
        self.arrives(&mut check, iova, first, format_args!("the first context again"))?;
        self.is_silent(&mut check);
        Ok(())
    }

    /// A CD that is none, or nowhere.
    fn bad_contexts(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("bad-contexts-are-the-guests");
        let to = self.page(1);
        let bad = Stage1::new(&mut self.pool, ASID + 2)?;
        bad.write_context(&[0; 8]);
        self.smmu.set_ste(self.sid, &ste::stage1(bad.context))?;
        self.is_stopped(&mut check, IOVA, to, format_args!("an invalid CD"))?;
        self.is_event(&mut check, &[event::C_BAD_CD], IOVA, false);
        self.smmu.set_ste(self.sid, &ste::stage1(NOWHERE))?;
        self.is_stopped(&mut check, IOVA, to, format_args!("a CD that is nowhere"))?;
        self.is_event(&mut check, &[event::F_CD_FETCH], IOVA, false);
        // A CD with all the output bits there are, and a page just beyond those that this SMMU has.
        let beyond = 1 << self.identity.output_bits();
        bad.write_context(&format::wide_context(bad.root, bad.asid));
        bad.map(&mut self.pool, IOVA, beyond)?;
        self.smmu.set_ste(self.sid, &ste::stage1(bad.context))?;
        self.is_stopped(&mut check, IOVA, to, format_args!("beyond OAS"))?;
        self.is_event(&mut check, &[event::F_ADDR_SIZE], IOVA, false);
        Ok(())
    }

    /// Bypass and abort, and every command that makes the SMMU read an STE again.
    fn bypasses_and_aborts(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("bypass-and-abort");
        let to = self.page(1);
        let all = command::CFGI_ALL;
        let near = command::cfgi_ste_range(self.sid & !7, 2);
        let leaf = command::cfgi_ste(self.sid, true);
        let path = command::cfgi_ste(self.sid, false);
        for (passes, cfgi) in [
            (true, all),
            (false, all),
            (true, near),
            (false, near),
            (true, leaf),
            (false, leaf),
            (true, path),
            (false, path),
        ] {
            let ste = if passes { ste::PASS } else { ste::ABORT };
            self.smmu.table.write(self.sid, &ste);
            self.smmu.issue(&[cfgi, command::SYNC])?;
            if passes {
                self.arrives(&mut check, to, to, format_args!("bypass by {cfgi:x?}"))?;
            } else {
                self.is_stopped(&mut check, to, to, format_args!("abort by {cfgi:x?}"))?;
            }
            self.is_silent(&mut check);
        }
        Ok(())
    }

    /// A change of one word at a time, none of whose steps closes the stream: DMA goes on meanwhile.
    fn changes_hitlessly(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("changes-are-hitless");
        let to = self.page(2);
        let twin = Stage1::new(&mut self.pool, ASID + 3)?;
        // The same page under its own address: bypass leads there as well.
        self.stage1.map(&mut self.pool, to, to)?;
        twin.map(&mut self.pool, to, to)?;
        // What one form ignores is what the other one needs.
        let word1 = ste::CACHED | ste::PASS[1];
        let forms =
            [ste::stage1(self.stage1.context)[0], ste::stage1(twin.context)[0], ste::PASS[0]];
        let write = |form: u64| [form, word1, 0, 0, 0, 0, 0, 0];
        self.smmu.set_ste(self.sid, &write(forms[0]))?;
        for round in 0..4 {
            memory::fill(to, SIZE, memory::noise(POISON));
            let transfer = Transfer { operation: Operation::Write, address: to, size: SIZE };
            self.edu.prepare(transfer);
            self.edu.start(Operation::Write, false);
            let patience = Deadline::after_ms(5000);
            let mut changes = 0_usize;
            while self.edu.is_busy() && !patience.passed() {
                changes += 1;
                // Bypass once a round: a hypervisor may remember only so many changes of a stream's state.
                let form = if changes == 3 { 2 } else { changes % 2 };
                let entry = self.smmu.table.entry(self.sid);
                crate::arch::mem::write64(entry, forms[form]);
                self.smmu.issue(&[command::cfgi_ste(self.sid, true), command::SYNC])?;
            }
            let arrived = memory::matching(to, SIZE, memory::noise(DATA));
            self.testify(transfer, arrived, to);
            check.that(arrived == SIZE / 4, format_args!("{arrived} arrived in round {round}"));
            check.that(changes > 3, format_args!("only {changes} changes in round {round}"));
        }
        self.is_silent(&mut check);
        Ok(())
    }

    /// Replaces the stream table by another one.
    fn restart(
        &mut self,
        shape: Shape,
        prepare: impl FnOnce(&mut Self) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        let registers = self.smmu.registers;
        registers.set_cr0(0)?;
        registers.pass_while_disabled()?;
        self.smmu.table = smmu::StreamTable::new(&mut self.pool, shape)?;
        prepare(self)?;
        let Smmu { commands, events, table, .. } = self.smmu;
        self.smmu = Smmu::start(registers, commands, events, table)?;
        // A hypervisor may have stopped the device when the SMMU was disabled.
        self.edu.function.enable(COMMAND_BUS_MASTER);
        Ok(())
    }

    /// A table without a place for the stream.
    fn small_table(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("a-stream-beyond-the-table");
        let log2 = 31 - self.sid.leading_zeros();
        self.restart(Shape::Linear { log2 }, |_| Ok(()))?;
        let to = self.page(1);
        self.is_stopped(&mut check, to, to, format_args!("beyond the table"))?;
        self.is_event(&mut check, &[event::C_BAD_STREAMID], to, false);
        Ok(())
    }

    /// A two-level table whose second level appears without a command of its own.
    fn two_levels(&mut self) -> Result<(), &'static str> {
        const SPLIT: u32 = 6;
        if !self.identity.two_level() {
            return Ok(());
        }
        let mut check = Check::new("two-level-tables");
        let to = self.page(1);
        let (sid, bare) = (self.sid, self.identity.stage2());
        let log2 = self.identity.table_log2();
        self.restart(Shape::TwoLevel { log2, split: SPLIT }, |_| Ok(()))?;
        self.is_stopped(&mut check, to, to, format_args!("no second level"))?;
        self.is_event(&mut check, &[event::C_BAD_STREAMID], to, false);
        // One that ends before the stream; QEMU takes that for a bad STE.
        let span = 32 - (sid & ((1 << SPLIT) - 1)).leading_zeros();
        if span >= 1 {
            self.smmu.table.add_level2(&mut self.pool, sid, span)?;
            self.smmu.issue(&[command::cfgi_ste(sid, false), command::SYNC])?;
            self.is_stopped(&mut check, to, to, format_args!("a second level that is too short"))?;
            let kinds = [event::C_BAD_STREAMID, event::C_BAD_STE];
            let kinds = &kinds[..if bare { 2 } else { 1 }];
            self.is_event(&mut check, kinds, to, false);
        }
        // One that is nowhere.
        self.smmu.table.write_level1(sid >> SPLIT, format::level1(NOWHERE, 7));
        self.smmu.issue(&[command::cfgi_ste(sid, false), command::SYNC])?;
        self.is_stopped(&mut check, to, to, format_args!("a second level that is nowhere"))?;
        self.is_event(&mut check, &[event::F_STE_FETCH], to, false);
        for leaf in [true, false] {
            self.smmu.table.add_level2(&mut self.pool, sid, SPLIT + 1)?;
            self.smmu.table.write(sid, &ste::PASS);
            self.smmu.issue(&[command::cfgi_ste(sid, leaf), command::SYNC])?;
            self.arrives(&mut check, to, to, format_args!("a second level, leaf {leaf}"))?;
            self.smmu.set_ste(sid, &ste::stage1(self.stage1.context))?;
            let iova = IOVA + 0x3000;
            self.arrives(&mut check, iova, self.page(1), format_args!("stage 1, leaf {leaf}"))?;
            self.is_silent(&mut check);
            self.smmu.table.write_level1(sid >> SPLIT, 0);
            self.smmu.issue(&[command::cfgi_ste(sid, false), command::SYNC])?;
            self.is_stopped(&mut check, to, to, format_args!("the second level is gone"))?;
            self.is_event(&mut check, &[event::C_BAD_STREAMID], to, false);
        }
        Ok(())
    }

    /// An STE that was there before the SMMU is enabled needs no command.
    fn bypasses_from_the_start(&mut self) -> Result<(), &'static str> {
        let mut check = Check::new("entries-from-before-the-enable");
        let (to, sid) = (self.page(1), self.sid);
        // QEMU never goes back from a two-level table to a linear one.
        let log2 = self.identity.table_log2();
        let shape = match self.identity.two_level() {
            true => Shape::TwoLevel { log2, split: 6 },
            false => Shape::Linear { log2 },
        };
        for form in [ste::stage1(self.stage1.context), ste::PASS] {
            self.restart(shape, |suite| {
                if let Shape::TwoLevel { split, .. } = shape {
                    suite.smmu.table.add_level2(&mut suite.pool, sid, split + 1)?;
                }
                suite.smmu.table.write(sid, &form);
                Ok(())
            })?;
            let address = if form == ste::PASS { to } else { IOVA + 0x3000 };
            self.arrives(&mut check, address, to, format_args!("{form:x?}"))?;
        }
        self.is_silent(&mut check);
        Ok(())
    }
}
