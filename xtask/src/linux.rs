//! Placeholder of linux.
