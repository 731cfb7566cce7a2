//! The virtual GIC between a model of the physical GIC and a model of the virtual CPU interface.

mod delivery;
mod refinement;
mod registers;
mod schedules;
