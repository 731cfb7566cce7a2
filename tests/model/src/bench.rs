//! The model as a bench for scenarios: without an adversary, so that it does what a simple SMMU does.

use std::fmt::Arguments;

use scenarios::Bench;
use smmu::addr::{Pa, StreamId};
use smmu::ports::{Frames, Memory, Registers};

use crate::chooser::Chooser;
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;

/// The device's StreamID.
const SID: u32 = 8;

struct Model {
    machine: Machine,
    lines: Vec<String>,
}

/// Plays the scenarios on a model that nests, and returns what is said.
pub fn play() -> Vec<String> {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut model = Model { machine, lines: Vec::new() };
    scenarios::run(&mut model);
    model.lines
}

impl Registers for Model {
    fn read32(&self, offset: u32) -> u32 {
        self.machine.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.machine.write32(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        self.machine.write64(offset, value);
    }
}

impl Memory for Model {
    fn load(&self, at: Pa) -> u64 {
        self.machine.load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        self.machine.store(at, value);
    }

    fn publish(&self) {
        self.machine.publish();
    }
}

impl Model {
    fn dma(&self, address: u64, write: bool) -> Outcome {
        let outcome = self.machine.dma(Transaction { write, ..Transaction::write(SID, address) });
        self.machine.land();
        outcome
    }
}

impl Bench for Model {
    fn allocate(&mut self, size: u64) -> Pa {
        self.machine.frames().allocate(size).expect("there is memory")
    }

    fn sid(&self) -> StreamId {
        StreamId(SID)
    }

    fn write(&mut self, address: u64, target: Pa) -> bool {
        match self.dma(address, true) {
            Outcome::Reaches(at) => at == target.raw(),
            Outcome::Bypassed => address == target.raw(),
            Outcome::Aborted | Outcome::Stalled(_) => false,
        }
    }

    fn read(&mut self, address: u64) {
        self.dma(address, false);
    }

    fn say(&mut self, line: Arguments<'_>) {
        self.lines.push(line.to_string());
    }
}

#[cfg(test)]
mod tests {
    use scenarios::DIFFERENCES;

    use super::*;

    /// Each listed difference has its lines here, in its place, and a reason.
    #[test]
    fn differences_are_from_what_the_model_says() {
        let lines = play();
        println!("{}", lines.join("\n"));
        let mut rest = lines.as_slice();
        for difference in DIFFERENCES {
            assert!(!difference.reason.is_empty() && difference.model != difference.qemu);
            let at =
                rest.windows(difference.model.len()).position(|lines| lines == difference.model);
            let at = at.unwrap_or_else(|| panic!("the model does not say {:?}", difference.model));
            rest = &rest[at + difference.model.len()..];
        }
    }
}
