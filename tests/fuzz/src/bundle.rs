//! A bundle (FIT image) as a boot loader may pass it.

use platform::bundle::{Bundle, Image, VmConfig, write};
use platform::guest_map::RAM;

/// Reads the bundle; what is accepted is the same after it was written again.
pub fn run(bytes: &[u8]) {
    let bundle = match Bundle::parse(bytes) {
        Ok(bundle) => bundle,
        Err(error) => {
            assert!(error.to_string().starts_with("bundle, "), "{error}");
            return;
        }
    };
    if let Err(error) = bundle.verify() {
        assert!(error.to_string().starts_with("bundle, "), "{error}");
    }
    let again = write(bundle.vms()).expect("what the reader accepts, the writer does");
    let copy = Bundle::parse(&again).expect("what was written can be read");
    assert_eq!(copy.vms(), bundle.vms());
    copy.verify().expect("the hashes are those of the data");
    for vm in bundle.vms() {
        let images = [Some(vm.kernel), vm.initrd, Some(vm.device_tree)].into_iter().flatten();
        for image in images {
            let start = image.load.raw().checked_sub(RAM.raw()).expect("in RAM");
            assert!(start + image.data.len() as u64 <= vm.memory, "{:?}", vm.name);
        }
        // One byte further than there is memory, nothing is accepted.
        let past = |image: &Image<'_>| RAM.add(vm.memory - image.data.len() as u64 + 1);
        let mut moved = vm.clone();
        moved.kernel.load = past(&vm.kernel);
        let entry = vm.entry.raw() - vm.kernel.load.raw();
        moved.entry = moved.kernel.load.add(entry);
        assert!(write(&[moved]).is_err(), "{:?}", vm.name);
        if let Some(initrd) = vm.initrd {
            let load = past(&initrd);
            let moved = VmConfig { initrd: Some(Image { load, ..initrd }), ..vm.clone() };
            assert!(write(&[moved]).is_err(), "{:?}", vm.name);
        }
    }
}
