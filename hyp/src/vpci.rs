//! Placeholder of vpci.
