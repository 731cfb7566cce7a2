//! See [`fuzz::vgic`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::vgic::run);
