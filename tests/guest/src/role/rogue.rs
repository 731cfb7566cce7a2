//! The rogue: aims its device at everything it does not own, and dies with the device armed.

use super::memory::{self, PAGE};
use super::{check, done, tried};
use crate::arch::{exception, mem};
use crate::edu::{Edu, Operation, Transfer};
use crate::machine::Machine;
use crate::pci::Bus;
use crate::println;

/// Bytes of one DMA: 64 accesses.
const SIZE: u64 = 256;
const POISON: u32 = 0x5050_0000;

/// Where bare machines have what no guest may reach with its CPU.
const FOREIGN_REGISTERS: [(&str, u64); 4] = [
    ("cpu-reaches-no-its", 0x0808_0000),
    (NO_SMMU, 0x0905_0000),
    ("cpu-reaches-no-second-uart", 0x0904_0000),
    ("cpu-reaches-nothing-unmapped", 0x0b00_0000),
];

const NO_SMMU: &str = "cpu-reaches-no-smmu";
/// `SMMU_IDR0.S2P`: an SMMU with a stage 2 is nobody's but the hypervisor's.
const STAGE2: u32 = 1;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let nonce = machine.bootargs.number("nonce", 0)? as u32;
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let rogue = Rogue { machine, edu, nonce };

    for (name, address) in FOREIGN_REGISTERS {
        match exception::catch(|| mem::read32(address)) {
            Err(fault) => check(name, fault.is_external_abort(), format_args!("{fault}")),
            Ok(value) => {
                let own = name == NO_SMMU && machine.smmu.is_some() && value & STAGE2 == 0;
                check(name, own, format_args!("read {value:#x}"));
            }
        }
    }

    rogue.load_pattern()?;
    rogue.write(memory::dma_page(machine, 1))?;
    for target in machine.bootargs.numbers("targets") {
        rogue.write(target?)?;
    }
    for target in machine.bootargs.numbers("targets") {
        let target = target?;
        if !machine.ram.contains(&target) {
            rogue.read_foreign(target)?;
            break;
        }
    }
    rogue.load_pattern()?;

    // Armed last and dead at once, so that the device outlives its owner however slow the console is.
    let late =
        Transfer { operation: Operation::Write, address: memory::dma_page(machine, 2), size: 4 };
    memory::fill(late.address, late.size, memory::noise(POISON));
    edu.prepare(late);
    println!(
        "@armed device={} op={} address={:#x} accesses={}",
        edu.function,
        late.operation,
        late.address,
        late.accesses()
    );
    done("rogue");
    edu.start(late.operation, false);
    Ok(())
}

struct Rogue<'a> {
    machine: &'a Machine,
    edu: Edu,
    nonce: u32,
}

impl Rogue<'_> {
    /// Lets the device read the pattern from own RAM into its buffer, and proves that it did.
    fn load_pattern(&self) -> Result<(), &'static str> {
        let page = memory::dma_page(self.machine, 0);
        let proof = memory::dma_page(self.machine, 3);
        memory::fill(page, PAGE, memory::signature(self.nonce));
        memory::fill(proof, PAGE, memory::noise(POISON));
        let read = Transfer { operation: Operation::Read, address: page, size: SIZE };
        let write = Transfer { operation: Operation::Write, address: proof, size: SIZE };
        self.edu.transfer(read)?;
        self.edu.transfer(write)?;
        let arrived = memory::matching(proof, SIZE, memory::signature(self.nonce));
        tried(self.edu.function, read, arrived);
        tried(self.edu.function, write, arrived);
        Ok(())
    }

    /// Lets the device write the pattern to `target`.
    fn write(&self, target: u64) -> Result<(), &'static str> {
        let write = Transfer { operation: Operation::Write, address: target, size: SIZE };
        let end =
            target.checked_add(SIZE).ok_or("bootargs: target at the end of the address space")?;
        let own = self.machine.ram.contains(&target) && end <= self.machine.ram.end;
        if own {
            memory::fill(target, SIZE, memory::noise(POISON));
        }
        self.edu.transfer(write)?;
        // In foreign memory only others can see what arrived.
        let arrived =
            if own { memory::matching(target, SIZE, memory::signature(self.nonce)) } else { 0 };
        tried(self.edu.function, write, arrived);
        Ok(())
    }

    /// Lets the device read `target` and write what it got to own RAM: a refused read gives zeros.
    fn read_foreign(&self, target: u64) -> Result<(), &'static str> {
        let proof = memory::dma_page(self.machine, 3);
        memory::fill(proof, PAGE, memory::noise(POISON));
        let read = Transfer { operation: Operation::Read, address: target, size: SIZE };
        let write = Transfer { operation: Operation::Write, address: proof, size: SIZE };
        self.edu.transfer(read)?;
        self.edu.transfer(write)?;
        let poisoned = memory::matching(proof, SIZE, memory::noise(POISON));
        let empty = memory::matching(proof, SIZE, |_| 0);
        tried(self.edu.function, read, read.accesses() - poisoned - empty);
        tried(self.edu.function, write, write.accesses() - poisoned);
        Ok(())
    }
}
