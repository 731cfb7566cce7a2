//! See [`fuzz::bundle`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::bundle::run);
