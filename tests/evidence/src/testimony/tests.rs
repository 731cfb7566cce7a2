use proptest::prelude::*;

use super::*;

fn said(lines: &[&str]) -> Guest {
    let mut testimony = Testimony::new();
    lines.iter().for_each(|line| testimony.said("victim", line, true));
    testimony.guest("victim").unwrap().clone()
}

#[test]
fn every_kind_of_line_is_read() {
    let guest = said(&[
        "@tried device=00:01.0 op=write address=0x40400000 accesses=1024 arrived=1023",
        "@tried device=00:01.0 op=read address=0x40401000 accesses=2 arrived=0",
        "@tried device=00:01.0 op=read address=0x1000 accesses=2 arrived=0 to=nowhere",
        "@tried device=00:01.0 op=read address=0x1000 accesses=2 arrived=2 to=0x40403000",
        "@armed device=00:02.0 op=write address=0x40402000 accesses=1",
        "@canary page=0x40500000 ok",
        "@canary page=0x40501000 changed=0x40501010",
        "@disk name=nvme0n1 bytes=1048576 sha256=ok device=nvme1n1",
        "@disk name=nvme0n1 write=ok bytes=1048576",
        "@check name=cpu-reaches-no-its ok",
        "@interrupts device=00:01.0 count=10",
        "@iommu 0000:00:01.0 type=DMA",
        "@interrupts irq=14 count=7 GICv3 36 Level nvme0q0",
        "@done role=victim",
    ]);
    assert_eq!(
        guest.tried[0],
        Tried {
            device: "00:01.0".into(),
            op: Op::Write,
            address: 0x4040_0000,
            leads: Leads::Straight,
            accesses: 1024,
            arrived: 1023,
        }
    );
    assert_eq!(guest.tried[1].op, Op::Read);
    let leads: Vec<_> = guest.tried[2..].iter().map(|tried| tried.leads).collect();
    assert_eq!(leads, [Leads::Nowhere, Leads::To(0x4040_3000)]);
    assert_eq!((guest.armed[0].address, guest.armed[0].accesses), (0x4040_2000, 1));
    let changed: Vec<_> = guest.canaries.iter().map(|canary| canary.changed).collect();
    assert_eq!(changed, [None, Some(0x4050_1010)]);
    let disk = |written| Disk { name: "nvme0n1".into(), written, ok: true };
    assert_eq!(guest.disks, [disk(false), disk(true)]);
    let kinds: Vec<_> = guest.others.iter().map(|other| other.kind.as_str()).collect();
    assert_eq!(kinds, ["check", "interrupts", "iommu", "interrupts"]);
    assert_eq!(guest.others[1].fields["count"], "10");
    assert_eq!(guest.others[2].words, ["0000:00:01.0"]);
    assert_eq!(guest.others[3].words, ["GICv3", "36", "Level", "nvme0q0"]);
    assert_eq!(guest.done, [Done { role: "victim".into(), ok: true }]);
    assert_eq!((guest.failures.len(), guest.unread, guest.overflowed), (0, None, false));
}

#[test]
fn failures_keep_their_reason() {
    let guest = said(&[
        "@check name=timer FAILED why=it stood still, x=1",
        "@disk name=vda bytes=1048576 sha256=BAD",
        "@done role=victim FAILED why=bootargs: no role=",
    ]);
    assert_eq!(
        guest.failures,
        [
            "@check name=timer FAILED why=it stood still, x=1",
            "@disk name=vda bytes=1048576 sha256=BAD",
            "@done role=victim FAILED why=bootargs: no role=",
        ]
    );
    assert!(!guest.disks[0].ok);
    assert!(!guest.done[0].ok);
}

#[test]
fn what_cannot_be_read_is_kept() {
    for line in [
        "@tried device=00:01.0 op=write address=0x40400000 accesses=1024",
        "@tried device=00:01.0 op=wipe address=0x40400000 accesses=1 arrived=0",
        "@tried device=00:01.0 op=write address=0x40400000 accesses=1 arrived=2",
        "@tried device=00:01.0 op=write address=0x40400000 accesses=0 arrived=0",
        "@tried device=00:01.0 op=write address=0x0 accesses=9000000000 arrived=0",
        "@tried device=00:01.0 op=write address=0xfffffffffffffffe accesses=1 arrived=0",
        "@tried device=00:01.0 device=00:02.0 op=read address=0 accesses=1 arrived=0",
        "@armed device=00:01.0 op=write address=0x4040000g accesses=1",
        "@canary page=0x40500000",
        "@canary page=0x40500000 changed=",
        "@disk name=vda bytes=1048576",
        "@disk bytes=1048576 sha256=ok",
        "@disk name=vda sha256=ok write=ok",
        "@done",
        "@done role=victim @done role=victim",
    ] {
        assert_eq!(said(&[line]).unread.as_deref(), Some(line));
    }
}

#[test]
fn other_output_means_nothing() {
    let guest =
        said(&["@alive beat=7", "@", "[    0.0] Linux version 6.12", "mail me @home", "@tried"]);
    assert_eq!(guest.lines, 5);
    assert_eq!(guest.unread.as_deref(), Some("@tried"));
    assert_eq!(guest.others, []);
}

#[test]
fn a_line_belongs_to_the_guest_that_el2_names() {
    let mut testimony = Testimony::new();
    assert_eq!(
        testimony.line("[victim] @done role=victim\r\n"),
        Some(("victim", "@done role=victim"))
    );
    assert_eq!(
        testimony.line("[rogue] [victim] @done role=victim"),
        Some(("rogue", "[victim] @done role=victim"))
    );
    assert_eq!(testimony.line("[el2] two VMs"), None);
    assert_eq!(testimony.line("@done role=victim"), None);
    assert_eq!(testimony.guest("victim").unwrap().done.len(), 1);
    assert_eq!(testimony.guest("rogue").unwrap().done, []);
    assert_eq!(testimony.lines(), 2);
}

#[test]
fn expected_texts_are_looked_for_in_their_guest_only() {
    let mut testimony = Testimony::new();
    testimony.expect("linux0", "login:");
    testimony.line("[linux1] debian login: ");
    assert_eq!(testimony.missing().collect::<Vec<_>>(), [("linux0", "login:")]);
    testimony.line("[linux0] debian login: ");
    assert_eq!(testimony.missing().count(), 0);
}

#[test]
fn an_expected_text_is_found_in_whatever_pieces_its_line_comes() {
    let found = |text: &str, lines: &[&str]| {
        let mut testimony = Testimony::new();
        testimony.expect("a", text);
        lines.iter().for_each(|line| _ = testimony.line(line));
        testimony.missing().count() == 0
    };
    let begun = format!("[a] {}gr\\xc3", "x".repeat(console::PIECE + 1 - 6));
    assert!(found("gr\u{fc}n", &["[a] gr\\xc3\\xbcn\r"]));
    assert!(found("gr\u{fc}n", &[&begun, "[b] gr", "[el2] b: off", "[a] \\xbcn"]));
    let spaces = format!("[a] {}x   ", " ".repeat(console::PIECE + 1 - 4));
    assert!(found("x   y", &[&spaces, "[a] y"]));
    assert!(found("login: ", &["[a] login: \r"]));
    // What ends is not gone on with.
    assert!(!found("gr\u{fc}n", &[&begun[..begun.len() - 1], "[a] \\xbcn"]));
    assert!(!found("xy", &["[a] x", "[a] y"]));
}

#[test]
fn an_endless_guest_is_cut_off() {
    let mut testimony = Testimony::new();
    for _ in 0..=LIMIT {
        testimony.said("rogue", "@canary page=0x40500000 ok", true);
    }
    let guest = testimony.guest("rogue").unwrap();
    assert_eq!(guest.canaries.len(), LIMIT);
    assert!(guest.overflowed);
}

proptest! {
    /// A guest prints what it likes.
    #[test]
    fn nothing_that_a_guest_says_is_dangerous(
        kind in proptest::sample::select(&KINDS[..]),
        rest in "( ?(device|op|address|accesses|arrived|page|changed|sha256|name|why|)=?(0x)?[0-9a-f]{0,20}){0,6}",
        noise in ".{0,40}",
    ) {
        let guest = said(&[&format!("@{kind}{rest}"), &format!("@{kind} {noise}"), &noise]);
        for tried in &guest.tried {
            prop_assert!(tried.address.checked_add(4 * tried.accesses).is_some());
        }
        prop_assert_eq!(guest.lines, 3);
    }
}
