//! Placeholder of bundle.
