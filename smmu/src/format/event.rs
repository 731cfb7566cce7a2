//! Event records (section 7.3).
//!
//! All kinds have their number, substream and stream in the first word; what follows depends on the kind.

use crate::addr::StreamId;
use crate::event::each_kind;
use crate::format::{Address, encoding, numbered, structure};

encoding! {
    /// What the SMMU was doing for the transaction when it failed (`CLASS`).
    Class {
        /// Fetching its CD.
        Context = 0b00,
        /// Walking stage 1's tables.
        Table = 0b01,
        /// Translating its own address.
        Input = 0b10,
    }
}

/// A transaction's fault in a stage of translation: the same record whatever the fault is, but for what one kind has
/// beside it.
macro_rules! translation_faults {
    ($(
        $(#[$doc:meta])* $name:ident {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $label:literal [$high:literal : $low:literal],)*
        }
    )*) => {$(
        structure! {
            $(#[$doc])*
            $name: 4 {
                /// It had a substream.
                has_substream: bool = "SSV" [11:11],
                /// Which.
                substream: u32 = "SubstreamID" [31:12],
                /// Its stream.
                stream: StreamId = "StreamID" [63:32],
                /// What to name it by in `CMD_RESUME`.
                tag: u16 = "STAG" [79:64],
                /// It waits for `CMD_RESUME`.
                stalled: bool = "Stall" [95:95],
                /// It was privileged.
                privileged: bool = "PnU" [97:97],
                /// It was an instruction fetch.
                instruction: bool = "InD" [98:98],
                /// It was a read.
                read: bool = "RnW" [99:99],
                /// Stage 2 refused it.
                stage2: bool = "S2" [103:103],
                /// While doing what.
                class: Class = "CLASS" [105:104],
                $($(#[$field_doc])* $field: $type = $label [$high : $low],)*
                /// The implementation's own.
                implementation: u16 = "IMPL_DEF" [127:112],
                /// The address that the device used.
                input: Address = "InputAddr" [191:128],
                /// What stage 2 refused, if it did.
                ipa: Address = "IPA" [247:204],
            }
        }
    )*};
}

/// A record without anything but whose it is.
macro_rules! bad_configuration {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        structure! {
            $(#[$doc])*
            $name: 4 {
                /// The transaction had a substream.
                has_substream: bool = "SSV" [11:11],
                /// Which.
                substream: u32 = "SubstreamID" [31:12],
                /// Its stream.
                stream: StreamId = "StreamID" [63:32],
            }
        }
    )*};
}

/// A structure that could not be read.
macro_rules! fetch_faults {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        structure! {
            $(#[$doc])*
            $name: 4 {
                /// The transaction had a substream.
                has_substream: bool = "SSV" [11:11],
                /// Which.
                substream: u32 = "SubstreamID" [31:12],
                /// Its stream.
                stream: StreamId = "StreamID" [63:32],
                /// The implementation's reason.
                reason: u16 = "Reason" [79:64],
                /// The memory belongs to another world.
                granule_protection: bool = "GPCF" [80:80],
                /// Where it was to be read.
                fetch: Address = "FetchAddr" [247:195],
            }
        }
    )*};
}

each_kind! {
    numbered
    /// An event record.
    Event: 4
}

structure! {
    /// `F_UUT`.
    UnsupportedTransaction: 4 {
        /// It had a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// The implementation's reason.
        reason: u16 = "Reason" [79:64],
        /// It was privileged.
        privileged: bool = "PnU" [97:97],
        /// It was an instruction fetch.
        instruction: bool = "InD" [98:98],
        /// It was a read.
        read: bool = "RnW" [99:99],
        /// The address that the device used.
        input: Address = "InputAddr" [191:128],
    }
}

bad_configuration! {
    /// `C_BAD_STREAMID`.
    BadStreamId;
    /// `C_BAD_STE`.
    BadSte;
    /// `C_BAD_CD`.
    BadCd;
}

structure! {
    /// `F_BAD_ATS_TREQ`.
    BadAtsRequest: 4 {
        /// It had a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// How many translations it asked for.
        span: u8 = "Span" [67:64],
        /// For a privileged access.
        privileged: bool = "PRIV" [92:92],
        /// For execution.
        execute: bool = "X" [93:93],
        /// For writes.
        write: bool = "W" [94:94],
        /// For reads.
        read: bool = "R" [95:95],
        /// The address that it asked for.
        input: Address = "InputAddr" [191:140],
    }
}

structure! {
    /// `F_STREAM_DISABLED`.
    StreamDisabled: 4 {
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
    }
}

structure! {
    /// `F_TRANSL_FORBIDDEN`.
    TranslationForbidden: 4 {
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// It was a read.
        read: bool = "RnW" [99:99],
        /// The address that the device used.
        input: Address = "InputAddr" [191:128],
    }
}

structure! {
    /// `C_BAD_SUBSTREAMID`.
    BadSubstreamId: 4 {
        /// The substream: there always is one.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
    }
}

fetch_faults! {
    /// `F_STE_FETCH`.
    SteFetch;
    /// `F_CD_FETCH`.
    CdFetch;
    /// `F_VMS_FETCH`.
    VmsFetch;
}

structure! {
    /// `F_WALK_EABT`.
    WalkAbort: 4 {
        /// It had a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// The implementation's reason.
        reason: u16 = "Reason" [79:64],
        /// The memory belongs to another world.
        granule_protection: bool = "GPCF" [80:80],
        /// It was privileged.
        privileged: bool = "PnU" [97:97],
        /// It was an instruction fetch.
        instruction: bool = "InD" [98:98],
        /// It was a read.
        read: bool = "RnW" [99:99],
        /// Stage 2 was walked.
        stage2: bool = "S2" [103:103],
        /// What for.
        class: Class = "CLASS" [105:104],
        /// The address that the device used.
        input: Address = "InputAddr" [191:128],
        /// Where the table was to be read.
        fetch: Address = "FetchAddr" [247:195],
    }
}

translation_faults! {
    /// `F_TRANSLATION`.
    Translation {}
    /// `F_ADDR_SIZE`.
    AddressSize {}
    /// `F_ACCESS`.
    Access {}
    /// `F_PERMISSION`.
    Permission {
        /// A dirty state would have had to be set that the SMMU does not set.
        dirty: bool = "DirtyBit" [106:106],
        /// The memory was not assured, and nothing else was wrong.
        assured_only: bool = "AssuredOnly" [107:107],
        /// The walk was for a read.
        walk_read: bool = "TTRnW" [108:108],
        /// The overlay refused it.
        overlay: bool = "Overlay" [109:109],
    }
}

structure! {
    /// `F_TLB_CONFLICT`.
    TlbConflict: 4 {
        /// It had a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// The implementation's reason.
        reason: u32 = "Reason" [95:64],
        /// It was privileged.
        privileged: bool = "PnU" [97:97],
        /// It was an instruction fetch.
        instruction: bool = "InD" [98:98],
        /// It was a read.
        read: bool = "RnW" [99:99],
        /// In stage 2.
        stage2: bool = "S2" [103:103],
        /// The address that the device used.
        input: Address = "InputAddr" [191:128],
        /// What stage 2 looked for, if it was stage 2.
        ipa: Address = "IPA" [247:204],
    }
}

structure! {
    /// `F_CFG_CONFLICT`.
    ConfigConflict: 4 {
        /// It had a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// The implementation's reason.
        reason: u32 = "Reason" [95:64],
    }
}

structure! {
    /// `E_PAGE_REQUEST`.
    PageRequest: 4 {
        /// It has a substream.
        has_substream: bool = "SSV" [11:11],
        /// Which.
        substream: u32 = "SubstreamID" [31:12],
        /// Its stream.
        stream: StreamId = "StreamID" [63:32],
        /// Unprivileged accesses to come: execute 1, write 2, read 4.
        unprivileged: u8 = "uR, uW, uX" [99:97],
        /// Privileged ones.
        privileged: u8 = "pR, pW, pX" [103:101],
        /// How many pages.
        span: u8 = "Span" [115:108],
        /// From here on.
        input: Address = "InputAddr" [191:140],
    }
}
