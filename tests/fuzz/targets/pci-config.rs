//! See [`fuzz::pci_config`].
#![cfg_attr(fuzzing, no_main)]
fuzz::program!(fuzz::pci_config::run);
