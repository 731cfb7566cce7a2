//! Placeholder of operator.
