//! See [`fuzz::smmu_events`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::smmu_events::run);
