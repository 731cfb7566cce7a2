//! Links the EL2 image with its own layout; the host build needs nothing of it.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../linker/hyp.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-changed=src/arch/boot.S");
    println!("cargo::rerun-if-changed=src/arch/vectors.S");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        for argument in [
            "-T",
            script,
            // Self-relocating: boot.S applies the RELATIVE entries, also to read-only sections.
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-zmax-page-size=4096",
            "--build-id=none",
            // Functions that are the same instructions for several types are there once; nobody compares their addresses.
            "--icf=all",
        ] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
