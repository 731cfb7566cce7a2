//! See [`fuzz::psci`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::psci::run);
