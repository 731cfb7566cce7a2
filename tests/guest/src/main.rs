//! Bare-metal guests.
fn main() {}
