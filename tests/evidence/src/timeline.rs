//! A picture of one teardown: what EL2 did when, and what devices tried meanwhile.

use std::fmt::Write as _;

use platform::report::{Moment, What};

use crate::report::Teardown;

const LEFT: f64 = 150.0;
const WIDTH: f64 = 720.0;
const LANE: f64 = 34.0;
const TOP: f64 = 56.0;

/// Draws the teardown of `vm` as an SVG image.
///
/// Time runs to the right, one lane per function below one for the VM as a whole. Its scale is logarithmic: a close
/// takes microseconds, a reset a tenth of a second, a watch for ever.
pub fn svg(vm: &str, teardown: &Teardown) -> String {
    let mut lanes: Vec<&str> = vec![""];
    for moment in &teardown.moments {
        if !lanes.contains(&moment.device.as_str()) {
            lanes.push(&moment.device);
        }
    }
    let end_us = teardown.moments.iter().map(|moment| moment.at_us).max().unwrap_or(0).max(10);
    let height = TOP + LANE * lanes.len() as f64 + 54.0;
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">",
        LEFT + WIDTH + 40.0
    ));
    line(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"));
    let cost = teardown.instructions.map_or(String::new(), |n| format!(", {n} instructions"));
    line(format_args!(
        "<text x=\"12\" y=\"22\" font-size=\"15\">{}: {}, {} streams closed{cost}</text>",
        escaped(vm),
        teardown.cause.name(),
        teardown.streams
    ));
    for (at_us, label) in ticks(end_us) {
        let x = place(at_us, end_us);
        let bottom = TOP + LANE * lanes.len() as f64;
        line(format_args!(
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{label}</text>",
            bottom + 16.0
        ));
    }
    for (index, lane) in lanes.iter().enumerate() {
        let y = TOP + LANE * (index as f64 + 0.5);
        let name = if lane.is_empty() { vm } else { lane };
        line(format_args!(
            "<text x=\"12\" y=\"{:.1}\">{}</text>\
             <line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#bbb\"/>",
            y + 4.0,
            escaped(name),
            LEFT + WIDTH
        ));
        for moment in teardown.moments.iter().filter(|moment| moment.device.as_str() == *lane) {
            let x = place(moment.at_us, end_us);
            let (colour, word) = look(moment.what);
            let count = if moment.count > 0 { format!(" {}", moment.count) } else { String::new() };
            line(format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\">\
                 <title>{word}{count} after {}</title></circle>",
                duration(moment.at_us)
            ));
        }
    }
    let mut x = LEFT;
    for what in seen(&teardown.moments) {
        let (colour, word) = look(what);
        line(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{word}</text>",
            x + 9.0,
            height - 12.0,
            y = height - 16.0
        ));
        x += 92.0;
    }
    line(format_args!("</svg>"));
    out
}

/// Where a moment is on the axis.
fn place(at_us: u64, end_us: u64) -> f64 {
    let scaled = |us: u64| (us as f64 + 1.0).ln();
    LEFT + WIDTH * scaled(at_us) / scaled(end_us)
}

/// Powers of ten up to the end.
fn ticks(end_us: u64) -> impl Iterator<Item = (u64, String)> {
    let powers = std::iter::successors(Some(1_u64), |power| power.checked_mul(10));
    powers.take_while(move |power| *power <= end_us).map(|power| (power, duration(power)))
}

fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

const ALL: [What; 8] = [
    What::Closed,
    What::Watched,
    What::Quiesced,
    What::Late,
    What::Silenced,
    What::Reopened,
    What::Ended,
    What::Scrubbed,
];

/// What there is in a picture, in the order of a teardown.
fn seen(moments: &[Moment]) -> impl Iterator<Item = What> {
    ALL.into_iter().filter(|what| moments.iter().any(|moment| moment.what == *what))
}

fn look(what: What) -> (&'static str, &'static str) {
    match what {
        What::Closed => ("#c0392b", "closed"),
        What::Watched => ("#e67e22", "watched"),
        What::Quiesced => ("#2980b9", "quiesced"),
        What::Late => ("#8e44ad", "late DMA"),
        What::Silenced => ("#7f8c8d", "silenced"),
        What::Reopened => ("#27ae60", "reopened"),
        What::Ended => ("#34495e", "watch over"),
        What::Scrubbed => ("#16a085", "scrubbed"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use platform::report::Cause;

    use super::*;

    fn moment(at_us: u64, what: What, device: &str, count: u64) -> Moment {
        Moment { at_us, what, device: device.try_into().unwrap(), count }
    }

    fn teardown() -> Teardown {
        Teardown {
            cause: Cause::MmuOff,
            streams: 2,
            instructions: Some(1900),
            quiesced: Vec::new(),
            moments: vec![
                moment(3, What::Closed, "", 2),
                moment(90_000, What::Late, "00:03.0", 812),
                moment(250_000, What::Quiesced, "00:03.0", 0),
                moment(4_000_000, What::Reopened, "00:03.0", 0),
            ],
        }
    }

    #[test]
    fn everything_is_in_the_picture_and_in_order() {
        let picture = svg("a<b", &teardown());
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        for text in
            ["a&lt;b: mmu-off, 2 streams closed, 1900 instructions", "late DMA 812 after 90 ms"]
        {
            assert!(picture.contains(text), "{text} in {picture}");
        }
        assert_eq!(picture.matches("<title>").count(), 4);
        let xs: Vec<f64> = teardown().moments.iter().map(|m| place(m.at_us, 4_000_000)).collect();
        assert!(xs.is_sorted() && xs[0] > LEFT && xs[3] <= LEFT + WIDTH);
    }

    #[test]
    fn a_teardown_without_moments_is_a_picture_too() {
        let picture = svg("vm", &Teardown { moments: Vec::new(), ..teardown() });
        assert!(picture.contains("vm: mmu-off"));
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }
}
