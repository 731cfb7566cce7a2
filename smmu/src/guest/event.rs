//! A physical event in a guest's terms (section 7.3): its StreamID, its addresses, and no other bit.

use crate::addr::{Ipa, StreamId};
use crate::event::{Event, FaultClass, Kind, Words};
use crate::guest::table::Refused;

const F_STE_FETCH: u64 = 0x03;
const C_BAD_STREAMID: u64 = 0x02;
const C_BAD_STE: u64 = 0x04;
const F_CD_FETCH: u64 = 0x09;
const F_WALK_EABT: u64 = 0x0b;
const F_ADDR_SIZE: u64 = 0x11;

/// PnU, InD and RnW of the transaction.
const ACCESS: u64 = 0b111 << 33;
/// `CLASS`, where stage 1 has something to say.
const CLASS_TT: u64 = 0b01 << 40;
const CLASS_IN: u64 = 0b10 << 40;
/// The page of an address that stage 2 refused: the low bits are not architectural.
const PAGE: u64 = 0x00ff_ffff_ffff_f000;

fn header(event: &Event, code: u64, sid: StreamId) -> u64 {
    let substream = event.ssid.map_or(0, |ssid| 1 << 11 | u64::from(ssid) << 12);
    code | substream | u64::from(sid.0) << 32
}

/// The record of a transaction that met no STE of the guest's.
pub fn refused(event: &Event, sid: StreamId, refused: Refused) -> Words {
    match refused {
        Refused::BadStreamId => [header(event, C_BAD_STREAMID, sid), 0, 0, 0],
        Refused::SteFetch(at) => [header(event, F_STE_FETCH, sid), 0, 0, at.raw()],
        Refused::BadSte => [header(event, C_BAD_STE, sid), 0, 0, 0],
    }
}

/// The record of a transaction that the guest's stage 1, whose CD is at `context`, did not translate, or not to one of
/// the guest's `ipa_bits` of addresses; `None` if it was stage 2 that refused the transaction itself, or nothing that
/// the guest could have done.
pub fn stage1(event: &Event, sid: StreamId, context: Ipa, ipa_bits: u8) -> Option<Words> {
    let access = event.words[1] & ACCESS;
    let input = event.input.map_or(0, |input| input.address.raw());
    // What the guest's own SMMU would have found missing: memory for a CD or a table.
    let context_fetch = [header(event, F_CD_FETCH, sid), 0, 0, context.raw()];
    let walk_abort =
        |at: u64| [header(event, F_WALK_EABT, sid), access | CLASS_TT, input, at & PAGE];
    match event.kind {
        Kind::Translation | Kind::AddressSize | Kind::Access | Kind::Permission => {
            let stage = event.stage?;
            match (stage.class, stage.stage2) {
                (FaultClass::Input, false) => {
                    let code = event.words[0] & 0xff;
                    Some([header(event, code, sid), access | CLASS_IN, input, 0])
                }
                (FaultClass::Cd, _) => Some(context_fetch),
                // QEMU leaves S2=0 here.
                (FaultClass::TableWalk, _) => Some(walk_abort(event.words[3])),
                // More than `IDR5.OAS` of the guest's SMMU: what its stage 1 would have refused.
                (FaultClass::Input, true) if event.is_beyond(ipa_bits) => {
                    Some([header(event, F_ADDR_SIZE, sid), access | CLASS_IN, input, 0])
                }
                (FaultClass::Input, true) | (FaultClass::Reserved, _) => None,
            }
        }
        // Where memory failed is a physical address.
        Kind::WalkAbort => event.stage.filter(|stage| !stage.stage2).map(|_| walk_abort(0)),
        Kind::CdFetch => Some(context_fetch),
        Kind::TlbConflict if event.stage.is_some_and(|stage| stage.stage2) => None,
        Kind::TlbConflict | Kind::UnsupportedTransaction => {
            Some([header(event, event.words[0] & 0xff, sid), access, input, 0])
        }
        Kind::BadCd | Kind::BadSubstreamId | Kind::StreamDisabled | Kind::ConfigConflict => {
            Some([header(event, event.words[0] & 0xff, sid), 0, 0, 0])
        }
        Kind::BadSte => Some([header(event, C_BAD_STE, sid), 0, 0, 0]),
        _ => None,
    }
}
