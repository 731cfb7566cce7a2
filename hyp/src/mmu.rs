//! What EL2 knows of a virtual CPU's MMU, which it sees only now and then.

/// What is known of one CPU's MMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mmu {
    /// It was seen on since the CPU started, or since it was last found off.
    was_on: bool,
    /// It went off, and nothing yet tells whether another kernel did that.
    undecided: bool,
}

impl Mmu {
    /// It is seen `on` or off; returns whether it went off.
    pub fn sees(&mut self, on: bool) -> bool {
        core::mem::replace(&mut self.was_on, on) && !on
    }

    /// It went off just now, and what the guest does next will tell whose doing that is.
    ///
    /// Another kernel cannot help doing something that traps before it switches the MMU on: at least it says where its
    /// tables are. A kernel that needs to change its own tables, as Linux before 6.0 does once at boot if it is to be
    /// hidden from user space, does nothing of the kind in between.
    pub fn leave_undecided(&mut self) {
        self.undecided = true;
    }

    /// Whether that is still open.
    pub fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// The guest does something that traps: `resumes` if that switches the MMU on and does nothing else. Returns whether
    /// that shows another kernel.
    pub fn decide(&mut self, resumes: bool) -> bool {
        core::mem::take(&mut self.undecided) && !resumes
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
    fn what_comes_first_decides_whose_doing_it_is() {
        let mut mmu = Mmu::default();
        assert!(!mmu.decide(false), "nothing is to be decided");
        for another in [true, false] {
            mmu.leave_undecided();
            assert!(mmu.is_undecided());
            assert_eq!(mmu.decide(!another), another);
            assert!(!mmu.is_undecided() && !mmu.decide(false));
        }
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
