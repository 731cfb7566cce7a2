//! Placeholder of setup.
