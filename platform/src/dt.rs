//! Placeholder of dt.
