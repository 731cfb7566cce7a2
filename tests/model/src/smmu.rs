//! The SMMU itself: what it remembers, and what it does with transactions, commands and registers.

pub mod cache;
mod queue;
mod registers;
mod translate;

pub use registers::Registers;
