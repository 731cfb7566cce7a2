//! See [`fuzz::device_tree`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::device_tree::run);
