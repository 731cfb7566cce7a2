//! From a device tree to running guests.

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use platform::dt::{self, Machine};
use smmu::addr::{PAGE_SIZE, Pa};

use crate::arch::{boot, firmware};
use crate::mem::paging::{Map, Use};
use crate::mem::{self, layout};

/// The machine, the bundle or the device tree is not what it should be: nothing is started. The SMMU, if it was
/// found, is closed.
fn refuse(reason: impl fmt::Display) -> ! {
    log::error!("{reason}");
    firmware::system_off()
}

fn pa_range(range: dt::Range) -> Range<Pa> {
    range.base..range.base.add(range.size)
}

/// The pieces of `ranges` that are in none of `holes`.
fn without<const N: usize>(ranges: &[Range<Pa>], holes: &[Range<Pa>]) -> Vec<Range<Pa>, N> {
    let mut left: Vec<Range<Pa>, N> = ranges.iter().cloned().collect();
    for hole in holes {
        let mut next: Vec<Range<Pa>, N> = Vec::new();
        for range in &left {
            for piece in [
                range.start..range.end.min(hole.start),
                range.start.max(hole.end)..range.end,
            ] {
                if piece.start < piece.end && next.push(piece).is_err() {
                    refuse("memory is cut into too many pieces by what the boot loader put there");
                }
            }
        }
        left = next;
    }
    left
}

/// The first CPU, under the boot map.
pub fn primary(device_tree: Pa) -> ! {
    let Some(blob) = mem::device_tree(device_tree) else {
        // Nobody can be told: the device tree is what names the console.
        boot::park()
    };
    let blob_end = device_tree.add((blob.len() as u64).next_multiple_of(PAGE_SIZE));
    let blob_range = device_tree.align_down(PAGE_SIZE)..blob_end;
    let mut map = Map::of_image();
    map.add(blob_range.clone(), Use::Constants);
    let console = dt::console(blob);
    if let Some(uart) = console {
        map.add(pa_range(uart.range), Use::Device);
    }
    map.activate();
    if let Some(uart) = console {
        crate::arch::uart::install_console(uart.range.base);
    }
    crate::console::start_log(log::LevelFilter::Info);
    let machine = dt::discover(blob).unwrap_or_else(|refusal| refuse(refusal));
    log::info!("{} CPUs", machine.cpus.len());
    let _ = (without::<8>(&[], &[layout::image()]), &machine as &Machine);
    panic!("hello");
}

/// Every other CPU.
pub fn secondary() -> ! {
    boot::park()
}
