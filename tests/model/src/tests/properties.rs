//! Random lives of VMs against a random adversary.

use proptest::prelude::*;
use smmu::streams::Streams;

use super::{CAREFUL, cases, life, machine, op, profile};
use crate::nesting::Nesting;
use crate::profile::Profile;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(600)))]

    /// C1, C2, C3; no mixture, no poison, no stall, no illegal command or register write, no error of the
    /// driver's on the way.
    #[test]
    fn stage2_streams_stay_confined(
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

    /// The same with a stage 1 of the guest's on top, so that translations by both stages, CDs and walks
    /// through stage 2 are cached as well.
    #[test]
    fn nested_streams_stay_confined(
        seed: u64,
        profile in prop::sample::select(vec![Profile::NESTED, Profile::DANGEROUS, Profile::PLAIN]),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        let machine = machine(profile, seed, false);
        let mut streams = Streams::new();
        let violation = life(&machine, &mut streams, Nesting::new, 10, CAREFUL, &ops);
        prop_assert_eq!(violation, None);
    }
}
