//! Scenarios of delivery.
