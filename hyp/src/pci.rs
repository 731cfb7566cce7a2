//! Placeholder of pci.
