//! See [`fuzz::smmu_tables`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::smmu_tables::run);
