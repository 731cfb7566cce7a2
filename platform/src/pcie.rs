//! Placeholder of pcie.
