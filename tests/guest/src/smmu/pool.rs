//! Memory for tables and queues.

use crate::arch::mem;
use crate::machine::Machine;
use crate::role::memory::{self, PAGE};

/// The first page for DMA that roles leave to tables, and the first behind them.
const FIRST: u64 = 32;
const END: u64 = 256;

/// Zeroed pages, taken once and never given back.
#[derive(Debug)]
pub struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    /// All pages that there are for tables.
    pub fn new(machine: &Machine) -> Self {
        Self { next: memory::dma_page(machine, FIRST), end: memory::dma_page(machine, END) }
    }

    /// Takes `size` bytes of zeros, aligned to their size.
    ///
    /// # Errors
    ///
    /// A reason if there are too few.
    pub fn take(&mut self, size: u64) -> Result<u64, &'static str> {
        let size = size.next_power_of_two().max(PAGE);
        let start = self.next.next_multiple_of(size);
        if start + size > self.end {
            return Err("no memory for tables is left");
        }
        self.next = start + size;
        for at in (start..self.next).step_by(8) {
            mem::write64(at, 0);
        }
        mem::barrier();
        Ok(start)
    }
}
