//! See [`fuzz::manifest`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::manifest::run);
