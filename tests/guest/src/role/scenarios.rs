//! The scenarios that the model of the tests plays on the host, on the machine's own SMMU: each line that is seen is
//! compared with the model's.

use core::fmt::Arguments;

use scenarios::Bench;
use smmu::addr::{Pa, StreamId};
use smmu::ports::Memory;

use super::done;
use crate::arch::mem;
use crate::edu::{Edu, Operation, Transfer};
use crate::machine::Machine;
use crate::pci::Bus;
use crate::println;
use crate::smmu::{self as iommu, Pool, Registers};

struct Bare {
    registers: Registers,
    pool: Pool,
    edu: Edu,
    sid: u32,
    /// What is in memory before the device writes there: never twice the same, so never in the device's buffer.
    before: u32,
}

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let registers = Registers::find(machine)?;
    if !registers.identity().stage2() {
        return Err("scenarios: only for an SMMU with both stages");
    }
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = iommu::stream_id(machine, edu.function)?;
    if sid >= 256 {
        return Err("scenarios: the device is on another bus");
    }
    let mut bare = Bare { registers, pool: Pool::new(machine), edu, sid, before: 0 };
    scenarios::run(&mut bare);
    done("scenarios");
    Ok(())
}

impl smmu::ports::Registers for Bare {
    fn read32(&self, offset: u32) -> u32 {
        let value = self.registers.read(offset);
        mem::barrier();
        value
    }

    fn write32(&self, offset: u32, value: u32) {
        self.registers.write(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        self.registers.write64(offset, value);
    }
}

impl Memory for Bare {
    fn load(&self, at: Pa) -> u64 {
        mem::read64(at.raw())
    }

    fn store(&self, at: Pa, value: u64) {
        mem::write64(at.raw(), value);
    }

    fn publish(&self) {
        mem::barrier();
    }
}

impl Bare {
    fn transfer(&self, operation: Operation, address: u64) {
        let transfer = Transfer { operation, address, size: 4 };
        self.edu.transfer(transfer).expect("the device finishes, whatever becomes of its accesses");
    }
}

impl Bench for Bare {
    fn allocate(&mut self, size: u64) -> Pa {
        Pa::new(self.pool.take(size).expect("there is memory for the scenarios"))
    }

    fn sid(&self) -> StreamId {
        StreamId(self.sid)
    }

    fn write(&mut self, address: u64, target: Pa) -> bool {
        self.before += 1;
        mem::write32(target.raw(), self.before);
        mem::barrier();
        self.transfer(Operation::Write, address);
        mem::barrier();
        mem::read32(target.raw()) != self.before
    }

    fn read(&mut self, address: u64) {
        self.transfer(Operation::Read, address);
    }

    fn say(&mut self, line: Arguments<'_>) {
        println!("seen: {line}");
    }
}
