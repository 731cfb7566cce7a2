//! What EL2 knows of a virtual CPU's MMU, which it sees only now and then.

/// What is known of one CPU's MMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mmu {
    /// It was seen on since the CPU started, or since it was last found off.
    was_on: bool,
}

impl Mmu {
    /// It is seen `on` or off; returns whether it went off.
    pub fn sees(&mut self, on: bool) -> bool {
        core::mem::replace(&mut self.was_on, on) && !on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mmu_that_was_never_on_tells_nothing() {
        let mut mmu = Mmu::default();
        assert!(!mmu.sees(false) && !mmu.sees(false));
    }

    #[test]
    fn each_way_off_is_told_once() {
        let mut mmu = Mmu::default();
        assert!(!mmu.sees(true) && !mmu.sees(true));
        assert!(mmu.sees(false));
        assert!(!mmu.sees(false) && !mmu.sees(true));
        assert!(mmu.sees(false));
    }
}
