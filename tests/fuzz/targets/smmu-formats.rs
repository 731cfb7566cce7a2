//! See [`fuzz::smmu_formats`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::smmu_formats::run);
