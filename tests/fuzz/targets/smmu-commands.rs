//! See [`fuzz::smmu_commands`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::smmu_commands::run);
