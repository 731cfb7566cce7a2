//! The scenarios.

use smmu::addr::Pa;

use crate::Bench;
use crate::format::{
    ABORTING, BYPASSING, ILLEGAL, INVALID, SYNC, cfgi_cd_all, cfgi_ste, page2, register,
    tlbi_nh_all, tlbi_nh_asid, tlbi_nh_va, tlbi_s2_ipa, tlbi_s12_vmall,
};
use crate::rig::{
    ASID, CONTEXT, DATA, INPUT, INPUT_MISSING, INPUT_NO_TABLE, INPUT_NOTHING, INPUT_READ_ONLY,
    INPUT_STAGE1_READ_ONLY, MISSING, READ_ONLY, Rig, TABLES, VMID,
};

/// Where in a page the device's accesses are.
const OFFSET: u64 = 0x238;
/// The bits of a record's last word that say which page was not translated, or could not be fetched from.
const PAGE: u64 = 0x00ff_ffff_ffff_f000;

/// Plays all scenarios, and says what is seen.
pub fn run(bench: &mut impl Bench) {
    let mut rig = Rig::new(bench);
    stream_table(&mut rig);
    stage2_only(&mut rig);
    both_stages(&mut rig);
    cached_configuration(&mut rig);
    cached_translations(&mut rig);
    command_queue(&mut rig);
    event_queue(&mut rig);
    disabled(&mut rig);
    // The last one: QEMU keeps the format.
    two_levels(&mut rig);
}

impl<B: Bench> Rig<'_, B> {
    /// The device writes to `address`, and what is behind it is `target`.
    fn writes(&mut self, scenario: &str, address: u64, target: Pa) {
        let address = address + OFFSET;
        let arrived = self.bench.write(address, Pa::new(target.raw() + OFFSET));
        let became = if arrived { "arrived" } else { "did not arrive" };
        self.bench.say(format_args!("{scenario}: a write to {address:#x} {became}"));
        self.recorded(scenario);
    }

    /// The device reads from `address`.
    fn reads(&mut self, scenario: &str, address: u64) {
        let address = address + OFFSET;
        self.bench.read(address);
        self.bench.say(format_args!("{scenario}: a read of {address:#x}"));
        self.recorded(scenario);
    }

    /// Says what was recorded since the last time. The device's StreamID is not the same everywhere.
    fn recorded(&mut self, scenario: &str) {
        while let Some([first, flags, input, fetched]) = self.event() {
            let own = first >> 32 == u64::from(self.bench.sid().0);
            let whose = if own { "its" } else { "another's" };
            let code = first & 0xffff_ffff;
            self.bench.say(format_args!(
                "{scenario}: {whose} event {code:#x} flags={:#x} input={input:#x} page={:#x}",
                flags >> 32,
                fetched & PAGE
            ));
        }
    }

    fn says(&mut self, scenario: &str, what: &str, value: u32) {
        self.bench.say(format_args!("{scenario}: {what} {value:#x}"));
    }
}

fn stream_table<B: Bench>(rig: &mut Rig<'_, B>) {
    let (direct, target) = (rig.data.raw(), rig.data);
    rig.set_ste(INVALID);
    // Bypasses are to be found at physical addresses, which differ; no other access is made there.
    rig.writes("V=0", DATA, target);
    rig.set_ste(ABORTING);
    rig.writes("abort", DATA, target);
    rig.set_ste(BYPASSING);
    let arrived = rig.bench.write(direct + OFFSET, Pa::new(direct + OFFSET));
    rig.says("bypass", "arrived", arrived.into());
    rig.recorded("bypass");
    rig.restart_linear(0);
    rig.writes("StreamID beyond the table", DATA, target);
    rig.restart_linear(8);
}

fn stage2_only<B: Bench>(rig: &mut Rig<'_, B>) {
    let (data, read_only) = (rig.data, rig.read_only);
    let ste = rig.stage2();
    rig.set_ste(ste);
    rig.writes("stage 2, mapped", DATA, data);
    rig.reads("stage 2, mapped", DATA);
    rig.bench.write(MISSING + OFFSET, data);
    if let Some([.., fetched]) = rig.event() {
        rig.says("stage 2, unmapped", "its event has beside the page", (fetched & !PAGE) as u32);
    }
    rig.writes("stage 2, unmapped", MISSING, data);
    rig.reads("stage 2, unmapped", MISSING);
    rig.writes("stage 2, read-only", READ_ONLY, read_only);
    rig.reads("stage 2, read-only", READ_ONLY);
    rig.writes("stage 2, beyond the input", 1 << 40, data);
    let ste = rig.stage2_silent();
    rig.set_ste(ste);
    rig.writes("stage 2, S2R=0", MISSING, data);
}

fn both_stages<B: Bench>(rig: &mut Rig<'_, B>) {
    let (data, read_only, sid) = (rig.data, rig.read_only, rig.bench.sid().0);
    let ste = rig.nested();
    rig.set_ste(ste);
    rig.writes("nested, mapped", INPUT, data);
    rig.reads("nested, mapped", INPUT);
    rig.writes("nested, unmapped in stage 1", INPUT_NOTHING, data);
    rig.reads("nested, unmapped in stage 1", INPUT_NOTHING);
    rig.writes("nested, read-only in stage 1", INPUT_STAGE1_READ_ONLY, data);
    rig.writes("nested, beyond the input", 1 << 39, data);
    rig.writes("nested, unmapped in stage 2", INPUT_MISSING, data);
    rig.reads("nested, unmapped in stage 2", INPUT_MISSING);
    rig.writes("nested, read-only in stage 2", INPUT_READ_ONLY, read_only);
    rig.writes("nested, table unmapped in stage 2", INPUT_NO_TABLE, data);
    rig.reads("nested, table unmapped in stage 2", INPUT_NO_TABLE);
    let ste = rig.nested_without_context();
    rig.set_ste(ste);
    rig.writes("nested, CD unmapped in stage 2", INPUT, data);
    let ste = rig.nested();
    rig.set_ste(ste);
    for (scenario, valid, record) in
        [("nested, CD.V=0", false, true), ("nested, CD.R=0", true, false)]
    {
        rig.set_context(valid, record);
        rig.issue(&[cfgi_cd_all(sid), SYNC]);
        rig.writes(scenario, INPUT_NOTHING, data);
        rig.writes(scenario, INPUT_NO_TABLE, data);
    }
    rig.set_context(true, true);
    rig.issue(&[cfgi_cd_all(sid), SYNC]);
}

fn cached_configuration<B: Bench>(rig: &mut Rig<'_, B>) {
    let (data, sid) = (rig.data, rig.bench.sid().0);
    let open = rig.stage2();
    rig.set_ste(open);
    rig.writes("a new STE without CFGI, before", DATA, data);
    rig.write_ste(ABORTING);
    rig.writes("a new STE without CFGI", DATA, data);
    rig.issue(&[cfgi_ste(sid), SYNC]);
    rig.writes("a new STE with CFGI", DATA, data);
    rig.write_ste(open);
    rig.writes("an opened STE without CFGI", DATA, data);
    rig.issue(&[cfgi_ste(sid), SYNC]);
    rig.writes("an opened STE with CFGI", DATA, data);

    let ste = rig.nested();
    rig.set_ste(ste);
    rig.writes("a CD that goes, before", INPUT, data);
    rig.set_context(false, true);
    rig.writes("a CD that goes without CFGI", INPUT, data);
    rig.issue(&[cfgi_cd_all(sid), tlbi_nh_all(VMID), SYNC]);
    rig.writes("a CD that goes with CFGI", INPUT, data);
    rig.set_context(true, true);
    rig.issue(&[cfgi_cd_all(sid), SYNC]);
}

fn cached_translations<B: Bench>(rig: &mut Rig<'_, B>) {
    let data = rig.data;
    let mapped = page2(data.raw(), true);
    let ste = rig.stage2();
    rig.set_ste(ste);
    rig.writes("an unmap, before", DATA, data);
    rig.map(DATA, None);
    rig.writes("an unmap without TLBI", DATA, data);
    rig.issue(&[tlbi_s12_vmall(VMID + 1), tlbi_s2_ipa(VMID + 1, DATA), SYNC]);
    rig.writes("an unmap with another VMID's TLBI", DATA, data);
    rig.issue(&[tlbi_nh_all(VMID), SYNC]);
    rig.writes("an unmap with stage 1's TLBI", DATA, data);
    rig.issue(&[tlbi_s2_ipa(VMID, DATA), SYNC]);
    rig.writes("an unmap with TLBI_S2_IPA", DATA, data);
    rig.map(DATA, Some(mapped));

    // Whether an SMMU keeps stage 2's own translations beside the combined ones is its own business: they always go.
    let ste = rig.nested();
    let stage2 = tlbi_s2_ipa(VMID, DATA);
    for (scenario, command) in [
        ("a nested unmap with another ASID's TLBI", tlbi_nh_asid(VMID, ASID + 1)),
        ("a nested unmap with another address's TLBI", tlbi_nh_va(VMID, ASID, INPUT_MISSING)),
        ("a nested unmap with stage 2's TLBI", stage2),
        ("a nested unmap with TLBI_NH_ASID", tlbi_nh_asid(VMID, ASID)),
        ("a nested unmap with TLBI_NH_VA", tlbi_nh_va(VMID, ASID, INPUT)),
        ("a nested unmap with TLBI_NH_ALL", tlbi_nh_all(VMID)),
        ("a nested unmap with TLBI_S12_VMALL", tlbi_s12_vmall(VMID)),
    ] {
        rig.set_ste(ste);
        rig.writes(scenario, INPUT, data);
        rig.map(DATA, None);
        rig.issue(&[stage2, command, SYNC]);
        rig.writes(scenario, INPUT, data);
        rig.map(DATA, Some(mapped));
    }

    // The table of the first level moves out of stage 2, and everything of the VMID is dropped.
    rig.set_ste(ste);
    rig.writes("stage 1's root unmapped, before", INPUT, data);
    let root = rig.mapping(TABLES[0]);
    rig.map(TABLES[0], None);
    rig.issue(&[tlbi_s12_vmall(VMID), SYNC]);
    rig.writes("stage 1's root unmapped", INPUT, data);
    let sid = rig.bench.sid().0;
    rig.issue(&[cfgi_ste(sid), SYNC]);
    rig.writes("stage 1's root unmapped, with CFGI", INPUT, data);
    rig.map(TABLES[0], root);
    let context = rig.mapping(CONTEXT);
    rig.set_ste(ste);
    rig.writes("the CD unmapped, before", INPUT, data);
    rig.map(CONTEXT, None);
    rig.issue(&[tlbi_s12_vmall(VMID), SYNC]);
    rig.writes("the CD unmapped", INPUT, data);
    rig.issue(&[cfgi_ste(sid), SYNC]);
    rig.writes("the CD unmapped, with CFGI", INPUT, data);
    rig.map(CONTEXT, context);
}

fn command_queue<B: Bench>(rig: &mut Rig<'_, B>) {
    // More than twice round.
    for _ in 0..11 {
        rig.issue(&[SYNC, SYNC, SYNC]);
    }
    let consumed = rig.bench.read32(register::CMDQ_CONS);
    let lag = consumed.wrapping_sub(rig.producer);
    rig.says("the queue wraps", "commands left", lag);
    rig.says("the queue wraps", "errors", rig.errors());

    let scenario = "an illegal command";
    let first = rig.producer;
    let seen = rig.issue(&[SYNC, ILLEGAL, SYNC]);
    rig.says(scenario, "consumed", (seen & 0x1f).wrapping_sub(first) & 0x1f);
    rig.says(scenario, "CMDQ_CONS.ERR", seen >> 24 & 0x7f);
    rig.says(scenario, "errors", rig.errors());
    let seen = rig.ring();
    rig.says(scenario, "consumed when told again", (seen & 0x1f).wrapping_sub(first) & 0x1f);
    rig.put((first + 1) & 0xf, SYNC);
    rig.acknowledge_errors();
    let seen = rig.consumed();
    rig.says(scenario, "consumed when acknowledged", (seen & 0x1f).wrapping_sub(first) & 0x1f);
    rig.says(scenario, "errors when acknowledged", rig.errors());
}

fn event_queue<B: Bench>(rig: &mut Rig<'_, B>) {
    let scenario = "an event queue overflows";
    rig.set_ste(INVALID);
    rig.restart_events(1);
    for _ in 0..3 {
        let target = rig.data;
        let arrived = rig.bench.write(DATA, target);
        rig.says(scenario, "arrived", arrived.into());
    }
    let producer = rig.bench.read32(register::EVENTQ_PROD);
    rig.says(scenario, "EVENTQ_PROD", producer);
    rig.says(scenario, "errors", rig.errors());
    rig.recorded(scenario);
    rig.acknowledge_errors();
    let target = rig.data;
    rig.writes("an event queue after an overflow", DATA, target);
    rig.restart_events(3);
}

fn disabled<B: Bench>(rig: &mut Rig<'_, B>) {
    let direct = rig.data.raw();
    rig.set_cr0(0);
    // QEMU and the model look at the register; hardware may as well.
    for (scenario, abort) in [("disabled, GBPA.ABORT=1", true), ("disabled, GBPA.ABORT=0", false)] {
        rig.set_gbpa(abort);
        let arrived = rig.bench.write(direct + OFFSET, Pa::new(direct + OFFSET));
        rig.says(scenario, "arrived", arrived.into());
    }
    rig.set_gbpa(true);
    rig.restart_events(3);
    rig.recorded("disabled");
}

fn two_levels<B: Bench>(rig: &mut Rig<'_, B>) {
    let data = rig.data;
    let ste = rig.stage2();
    rig.restart_two_level(7, ste);
    rig.writes("two levels", DATA, data);
    rig.restart_two_level(0, ste);
    rig.writes("two levels, SPAN=0", DATA, data);
    // One STE: the device's is another.
    rig.restart_two_level(1, ste);
    rig.writes("two levels, SPAN=1", DATA, data);
}
