//! See [`fuzz::smmu_registers`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::smmu_registers::run);
