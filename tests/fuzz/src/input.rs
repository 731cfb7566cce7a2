//! Bytes as the choices that a target makes.

use arbitrary::{Arbitrary, Unstructured};

/// What the fuzzer wrote. When it is used up, every number is 0 and every choice the first.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// The choices that `bytes` stand for.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether everything is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Any value.
    pub fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0.int_in_range(0..=limit.max(1) - 1).unwrap_or(0)
    }

    /// One of `choices`, of which there is at least one.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// A register's value or an address: half of the time near something that `interesting` names.
    pub fn near(&mut self, interesting: &[u64]) -> u64 {
        match self.any::<u8>() {
            choice if choice < 0x80 => self.any(),
            choice => interesting[usize::from(choice & 0x7f) % interesting.len()]
                .wrapping_add_signed(self.any::<i8>().into()),
        }
    }
}
