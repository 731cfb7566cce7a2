//! Random lives of VMs against a random adversary.

use proptest::prelude::*;
use smmu::streams::Streams;

use super::{CAREFUL, cases, life, machine, op, profile};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(1000)))]

    /// C1, C2, C3; no mixture, no poison, no stall, no illegal command or register write, no error of the
    /// driver's on the way. With stage 1 and without, and hot changes between the two.
    #[test]
    fn streams_stay_confined(
        profile in profile(),
        sid_bits in prop_oneof![Just(6_u8), Just(10)],
        firmware: bool,
        seed: u64,
        ops in prop::collection::vec(op(), 1..24),
    ) {
        let machine = machine(profile, seed, firmware);
        let mut streams = Streams::new();
        let violation = life(&machine, &mut streams, |machine| machine, sid_bits, CAREFUL, &ops);
        prop_assert_eq!(violation, None);
    }
}
