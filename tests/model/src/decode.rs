//! STE, CD and command formats, read from the specification a second time (chapters 4 and 5 of Arm IHI 0070),
//! word by word with literal positions.

use crate::profile::Profile;

/// `value[high:low]` of a structure of 64-bit words, as the specification numbers its bits.
pub fn bits(words: &[u64], high: usize, low: usize) -> u64 {
    assert_eq!(high / 64, low / 64, "no field crosses a word");
    words[low / 64] >> (low % 64) & (u64::MAX >> (63 - (high - low)))
}

/// The stage 2 of an STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage2 {
    /// `S2VMID`.
    pub vmid: u16,
    /// Width of an input address.
    pub bits: u32,
    /// The level at which the walk starts.
    pub level: u32,
    /// Width of an output address.
    pub output_bits: u32,
    /// The root.
    pub table: u64,
    /// `S2R`.
    pub record: bool,
    /// `S2S`.
    pub stall: bool,
    /// `MEV`.
    pub merge: bool,
}

/// What an STE makes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ste {
    /// `C_BAD_STE`.
    Bad(&'static str),
    /// Aborts.
    Abort,
    /// Passes untranslated.
    Bypass,
    /// Stage 1 alone.
    Stage1,
    /// Stage 2 alone.
    Stage2(Stage2),
    /// Stage 1 with its CD at this IPA, then stage 2.
    Nested(u64, Stage2),
}

/// Decodes an STE as this SMMU does (section 5.2).
pub fn ste(words: &[u64; 8], profile: &Profile) -> Ste {
    let field = |high, low| bits(words, high, low);
    if field(0, 0) == 0 {
        return Ste::Bad("V=0");
    }
    let config = field(3, 1);
    if config < 0b100 {
        return Ste::Abort;
    }
    if config == 0b100 {
        return Ste::Bypass;
    }
    if field(63, 59) != 0 {
        return Ste::Bad("S1CDMax without substreams");
    }
    if field(91, 91) != 0 && !profile.stalls() {
        return Ste::Bad("S1STALLD without stalls");
    }
    if config & 0b001 != 0 && !profile.stage1() || config & 0b010 != 0 && !profile.stage2() {
        return Ste::Bad("a stage that is not there");
    }
    if config == 0b101 {
        return Ste::Stage1;
    }
    match stage2(words, profile) {
        Err(reason) => Ste::Bad(reason),
        Ok(stage2) if config == 0b110 => Ste::Stage2(stage2),
        Ok(_) if field(5, 4) != 0 => Ste::Bad("S1Fmt"),
        Ok(stage2) => Ste::Nested(field(55, 6) << 6, stage2),
    }
}

fn stage2(words: &[u64; 8], profile: &Profile) -> Result<Stage2, &'static str> {
    let field = |high, low| bits(words, high, low);
    if field(179, 179) == 0 {
        return Err("S2AA64=0");
    }
    if field(180, 180) != 0 {
        return Err("S2ENDI");
    }
    if field(184, 183) != 0 {
        return Err("S2HA or S2HD without IDR0.HTTU");
    }
    if field(185, 185) != 0 && !profile.stalls() {
        return Err("S2S without stalls");
    }
    if field(175, 174) != 0 {
        return Err("S2TG is not 4 KiB");
    }
    let size = [32, 36, 40, 42, 44, 48, 52, 0][field(178, 176) as usize];
    if size == 0 {
        return Err("S2PS is reserved");
    }
    let output_bits = profile.output_bits().min(size);
    let input_bits = 64 - field(165, 160) as u32;
    let level = match field(167, 166) {
        0 => 2,
        1 => 1,
        2 => 0,
        _ => return Err("S2SL0 is reserved"),
    };
    // One table at that level resolves 9 bits, up to 16 of them together 4 more (section 5.2, S2SL0).
    let one_table = 12 + 9 * (4 - level);
    let lowest = one_table - 9 + 1;
    if input_bits < lowest || input_bits > one_table + 4 || input_bits > 48 {
        return Err("S2T0SZ does not fit S2SL0");
    }
    if input_bits > output_bits {
        return Err("S2T0SZ exceeds the output size");
    }
    let table = field(247, 196) << 4;
    let root_size = 4096_u64 << input_bits.saturating_sub(one_table);
    if table % root_size != 0 {
        return Err("S2TTB is not aligned");
    }
    if table >> output_bits != 0 {
        return Err("S2TTB exceeds the output size");
    }
    Ok(Stage2 {
        vmid: field(143, 128) as u16,
        bits: input_bits,
        level,
        output_bits,
        table,
        record: field(186, 186) != 0,
        stall: field(185, 185) != 0,
        merge: field(83, 83) != 0,
    })
}

/// A field that hands power to a device or a guest, and must be off in an STE that translates (C2).
pub fn forbidden_in_ste(words: &[u64; 8], profile: &Profile) -> Option<&'static str> {
    let field = |high, low| bits(words, high, low);
    [
        (field(93, 92) != 0, "EATS"),
        (field(95, 94) != 0, "STRW"),
        (field(76, 76) != 0, "DRE"),
        (field(81, 81) != 0, "DCP"),
        (field(185, 185) != 0, "S2S"),
        (field(91, 91) != u64::from(profile.stalls()), "S1STALLD"),
        (field(113, 110) != 0, "NSCFG or PRIVCFG"),
        (words[4..].iter().any(|word| *word != 0), "words 4 to 7"),
    ]
    .into_iter()
    .find_map(|(set, name)| set.then_some(name))
}

/// The stage 1 of a CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cd {
    /// `ASID`.
    pub asid: u16,
    /// `(T0SZ, TTB0)` and `(T1SZ, TTB1)`, unless `EPDn` switches them off.
    pub tables: [Option<(u32, u64)>; 2],
    /// Width of an intermediate physical address.
    pub output_bits: u32,
    /// `R`: record faults.
    pub record: bool,
    /// `S`: stall faults.
    pub stall: bool,
}

/// Decodes a CD as this SMMU does (section 5.4), or says why it is a `C_BAD_CD`.
pub fn cd(words: &[u64; 8], profile: &Profile) -> Result<Cd, &'static str> {
    let field = |high, low| bits(words, high, low);
    if field(31, 31) == 0 {
        return Err("V=0");
    }
    if field(41, 41) == 0 {
        return Err("AA64=0");
    }
    if field(46, 46) == 0 {
        return Err("A=0 where IDR0.TERM_MODEL is 1");
    }
    if field(43, 42) != 0 {
        return Err("HA or HD without IDR0.HTTU");
    }
    if field(15, 15) != 0 {
        return Err("ENDI");
    }
    let stall = field(44, 44) != 0;
    if stall && !profile.stalls() {
        return Err("S without stalls");
    }
    let size = [32, 36, 40, 42, 44, 48, 52, 0][field(34, 32) as usize];
    if size == 0 {
        return Err("IPS is reserved");
    }
    let output_bits = profile.output_bits().min(size);
    let half = |disabled: u64, size: u64, granule_4k: bool, table: u64| {
        if disabled != 0 {
            return Ok(None);
        }
        if !granule_4k {
            return Err("TG is not 4 KiB");
        }
        if !(16..=39).contains(&size) {
            return Err("TSZ is out of range");
        }
        if table >> output_bits != 0 {
            return Err("TTB exceeds the output size");
        }
        Ok(Some((size as u32, table)))
    };
    let tables = [
        half(field(14, 14), field(5, 0), field(7, 6) == 0, field(115, 68) << 4)?,
        // TG1 says 4 KiB with 0b10.
        half(field(30, 30), field(21, 16), field(23, 22) == 2, field(179, 132) << 4)?,
    ];
    Ok(Cd { asid: field(63, 48) as u16, tables, output_bits, record: field(45, 45) != 0, stall })
}

/// The level-2 table that a level-1 stream table descriptor leads to, and how many STEs it has
/// (section 5.1). `None`: there is none.
pub fn level1(word: u64, split: u32) -> Option<(u64, u64)> {
    let span = word & 0x1f;
    if span == 0 || span > u64::from(split) + 1 {
        return None;
    }
    let entries = 1 << (span - 1);
    // The table is aligned to its size.
    Some((word & 0x00ff_ffff_ffff_ffc0 & !(entries * 64 - 1), entries))
}

/// One step of a walk, in either stage (Arm ARM D8.3, 4 KiB granule).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Leads nowhere.
    Invalid,
    /// Leads to the next table.
    Table(u64),
    /// Leads to a block or page.
    Leaf {
        /// Where it is.
        at: u64,
        /// Bits 7:6: S2AP in stage 2, `AP[2:1]` in stage 1.
        access: u64,
        /// The access flag.
        used: bool,
    },
}

/// Decodes a descriptor found at `level`.
pub fn descriptor(word: u64, level: u32) -> Descriptor {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    let leaf_mask = !((1_u64 << (39 - 9 * level)) - 1);
    match (word & 3, level) {
        (3, 0..=2) => Descriptor::Table(word & ADDRESS),
        (3, 3) | (1, 1 | 2) => Descriptor::Leaf {
            at: word & ADDRESS & leaf_mask,
            access: word >> 6 & 3,
            used: word >> 10 & 1 != 0,
        },
        _ => Descriptor::Invalid,
    }
}

/// Addresses that a TLB invalidation names: first byte and size.
pub type Range = (u64, u64);

/// What the SMMU does on a command of the Non-secure queue (chapter 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `CMD_PREFETCH_*`: nothing that has to happen.
    Prefetch,
    /// `CMD_CFGI_STE` and the ranges: StreamIDs from the first up to and with the last; whether level-1
    /// descriptors go, too.
    Configuration(u32, u32, bool),
    /// `CMD_CFGI_CD` and `_ALL`.
    Context(u32),
    /// `CMD_TLBI_NH_ALL`.
    Stage1(u16),
    /// `CMD_TLBI_NH_ASID`.
    Asid(u16, u16),
    /// `CMD_TLBI_NH_VA` and `_VAA`: VMID, ASID, addresses, leaves only.
    Address(u16, Option<u16>, Range, bool),
    /// `CMD_TLBI_S12_VMALL`.
    Vmid(u16),
    /// `CMD_TLBI_S2_IPA`: VMID, addresses, leaves only.
    Ipa(u16, Range, bool),
    /// `CMD_TLBI_NSNH_ALL`.
    Everything,
    /// `CMD_RESUME`: the stream, the transaction's tag, and whether it tries again rather than ends.
    Resume(u32, u16, bool),
    /// `CMD_STALL_TERM`.
    EndStalls(u32),
    /// `CMD_SYNC`.
    Sync,
}

/// Decodes a command, or says why it is a `CERROR_ILL`.
pub fn command(words: &[u64; 2], profile: &Profile) -> Result<Command, &'static str> {
    let field = |high, low| bits(words, high, low);
    let sid = field(63, 32) as u32;
    let vmid = field(47, 32) as u16;
    let asid = field(63, 48) as u16;
    let leaf = field(64, 64) != 0;
    let range = || -> Result<Range, &'static str> {
        let address = field(127, 76) << 12;
        let (scale, number, granule, hint) =
            (field(24, 20), field(16, 12), field(75, 74), field(73, 72));
        match granule {
            0 => Ok((address, 4096)),
            _ if !profile.range_invalidation() => Err("a range without IDR3.RIL"),
            _ if (scale, number, hint) == (0, 0, 0) => Err("a reserved range"),
            2 if hint == 1 => Err("a level that the 16 KiB granule has no leaves at"),
            granule => {
                let log2 = 10 + 2 * granule;
                Ok((address >> log2 << log2, (number + 1) << scale << log2))
            }
        }
    };
    if field(10, 10) != 0 {
        return Err("SSec on the Non-secure queue");
    }
    let command = match field(7, 0) {
        0x01 | 0x02 => Command::Prefetch,
        0x03 => Command::Configuration(sid, sid, !leaf),
        0x04 => match field(68, 64) {
            31 => Command::Configuration(0, u32::MAX, true),
            range => {
                let group = (1_u32 << (range + 1).min(31)) - 1;
                Command::Configuration(sid & !group, sid | group, false)
            }
        },
        0x05 | 0x06 => Command::Context(sid),
        0x10..=0x13 if !profile.stage1() => return Err("no stage 1"),
        0x28 | 0x2a if !profile.stage2() => return Err("no stage 2"),
        0x10 => Command::Stage1(vmid),
        0x11 => Command::Asid(vmid, asid),
        0x12 => Command::Address(vmid, Some(asid), range()?, leaf),
        0x13 => Command::Address(vmid, None, range()?, leaf),
        0x28 => Command::Vmid(vmid),
        0x2a => Command::Ipa(vmid, range()?, leaf),
        0x30 => Command::Everything,
        0x44 | 0x45 if !profile.stalls() => return Err("no stalls"),
        0x44 => Command::Resume(sid, field(79, 64) as u16, field(12, 12) != 0),
        0x45 => Command::EndStalls(sid),
        0x46 => Command::Sync,
        _ => return Err("an opcode that this SMMU does not have"),
    };
    Ok(command)
}
