//! The baseline: the same machine without the hypervisor.

use anyhow::Result;
use tests::run::qemu;
use xtask::exit::Exit;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::native_demonstration_shows_what_a_bare_machine_lets_through", bare_machine_is_open),
    ("linux::native_passes", native_linux),
];

fn bare_machine_is_open() -> Result<()> {
    qemu(&["--native"])?
        .ended_with(Exit::Fail)?
        .found("of hypervisor")?
        .found("to smmu 0x9050000 were not stopped")?
        .holds("every DMA into RAM arrived", |outcome| {
            let said = outcome.testimony.guest("rogue");
            said.is_some_and(|said| {
                let mut in_ram = said
                    .tried
                    .iter()
                    .filter(|tried| (0x4000_0000..0x5000_0000).contains(&tried.address));
                in_ram.all(|tried| tried.arrived == tried.accesses)
            })
        })?;
    Ok(())
}

fn native_linux() -> Result<()> {
    qemu(&["--native", "--linux"])?
        .passed()?
        .has_row("two sources agree: guests, QEMU trace PASS")?;
    Ok(())
}
