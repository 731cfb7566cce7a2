//! Placeholder of guest_dt.
