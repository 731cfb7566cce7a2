use platform::report::{Hex, StreamState, VmState};

use super::*;
use crate::fixture::{
    HYPERVISOR, LATE, RAM, ROGUE, ROGUE_RAM, Run, SMMU, VICTIM, VICTIM_RAM, aborted, publish, refused,
    register, success,
};

#[test]
fn a_good_run_passes_with_a_table() {
    let run = Run::good();
    let verdict = run.judge();
    assert_eq!(verdict.findings, [""; 0]);
    assert!(verdict.pass);
    assert_eq!(
        verdict.table(),
        "\
device       owner   tried                  allowed  stopped  canary
00:01.0 edu  victim  own RAM                  2,048        0  ok
00:02.0 edu  rogue   own RAM                    128        0  -
00:02.0 edu  rogue   hypervisor 0x40030000        0      128  ok
00:02.0 edu  rogue   victim 0x40010000            0       64  ok
00:02.0 edu  rogue   smmu 0x9050000               0       64  -
00:02.0 edu  (dead)  late write 0x40006000        0        1  ok
three sources agree: guests, EL2, QEMU trace     PASS
"
    );
}
