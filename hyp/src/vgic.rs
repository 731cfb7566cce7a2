//! Placeholder of vgic.
