//! The bundle: a VM's images laid out in its memory, its generated device tree, and the FIT image of all VMs.

use anyhow::Result;
use platform::bundle::{Image, Stage1, VmConfig};
use platform::dt::Conduit;
use platform::{guest_dt, guest_map};
use smmu::addr::Ipa;

use crate::exit::bad_input;
use crate::kernel::Kernel;
use crate::plan::Owner;
use crate::size::{MIB, Size};
use crate::vm::Vm;

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The kernel, unpacked.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// The command line.
    pub append: String,
}

impl Payload {
    /// Where the initial RAM disk goes: at a 2 MiB boundary behind the kernel.
    pub fn initrd_at(&self) -> Option<Ipa> {
        self.initrd
            .as_ref()
            .map(|_| Ipa::new(self.kernel.end().next_multiple_of(guest_map::INITRD_ALIGN)))
    }

    /// Refuses a payload that does not fit into `vm`'s memory.
    ///
    /// # Errors
    ///
    /// Bad input, naming how much memory it needs.
    pub fn check_fits(&self, vm: &Vm) -> Result<()> {
        let initrd = self.initrd_at().zip(self.initrd.as_ref());
        let end = initrd.map_or(self.kernel.end(), |(at, initrd)| at.raw() + initrd.len() as u64);
        let needed = (end - guest_map::RAM.raw()).next_multiple_of(guest_map::RAM_GRANULE);
        let memory = &vm.memory;
        if needed > memory.value {
            return Err(bad_input(format!(
                "{}: {} is too little for VM {}, whose device tree, kernel and initrd alone take {}: give it more",
                memory.origin,
                Size(memory.value),
                vm.name.value,
                Size(needed.next_multiple_of(MIB)),
            )));
        }
        Ok(())
    }
}

/// Writes the bundle of all VMs; `payloads` are theirs, in the same order. `nested` says whether the machine's SMMU
/// has both stages, and so what the default is.
///
/// # Errors
///
/// If a VM does not hold together; what can be wrong in a user's input was refused before.
pub fn write(vms: &[Owner], payloads: &[Payload], nested: bool) -> Result<Vec<u8>> {
    let stage1 = |owner: &Owner| match (owner.vm.smmu.stage1.value, nested) {
        (Stage1::Default, true) => Stage1::Nested,
        (Stage1::Default, false) => Stage1::None,
        (asked, _) => asked,
    };
    let tree = |(owner, payload)| device_tree(owner, payload, stage1(owner) == Stage1::Nested);
    let trees: Vec<Vec<u8>> = vms.iter().zip(payloads).map(tree).collect();
    let configs = vms.iter().zip(payloads).zip(&trees);
    let configs =
        configs.map(|((owner, payload), tree)| config(owner, payload, tree, stage1(owner)));
    Ok(platform::bundle::write(&configs.collect::<Result<Vec<_>>>()?)?)
}

fn device_tree(owner: &Owner, payload: &Payload, smmu: bool) -> Vec<u8> {
    let initrd = payload.initrd_at().zip(payload.initrd.as_ref());
    guest_dt::generate(&guest_dt::Guest {
        memory: owner.vm.memory.value,
        cpus: u32::try_from(owner.cpus.len()).unwrap_or(u32::MAX),
        bootargs: &payload.append,
        initrd: initrd.map(|(at, initrd)| (at, initrd.len() as u64)),
        conduit: Conduit::Smc,
        smmu,
    })
}

fn config<'a>(
    owner: &Owner,
    payload: &'a Payload,
    tree: &'a [u8],
    stage1: Stage1,
) -> Result<VmConfig<'a>> {
    let room = |what: &str| anyhow::anyhow!("VM {} has too many {what}", owner.vm.name.value);
    let entry = Ipa::new(payload.kernel.load());
    let initrd = payload.initrd_at().zip(payload.initrd.as_deref());
    Ok(VmConfig {
        name: owner.vm.name.value.clone(),
        cpus: heapless::Vec::from_slice(&owner.cpus).map_err(|_| room("CPUs"))?,
        memory: owner.vm.memory.value,
        kernel: Image { data: &payload.kernel.bytes, load: entry },
        entry,
        initrd: initrd.map(|(load, data)| Image { data, load }),
        device_tree: Image { data: tree, load: guest_map::DEVICE_TREE },
        on_exit: owner.vm.on_exit.value,
        stage1,
        dma_at_boot: owner.vm.smmu.dma_at_boot,
        on_crash_kexec: owner.vm.smmu.on_crash_kexec,
        reopen: owner.vm.smmu.reopen,
        functions: heapless::Vec::from_slice(&owner.functions).map_err(|_| room("functions"))?,
    })
}

#[cfg(test)]
mod tests {
    use platform::bundle::{Bundle, Function, Reset};
    use platform::report::Name;

    use super::*;
    use crate::exit::Exit;
    use crate::kernel::Format;
    use crate::vm::{Content, Said};

    fn payload(initrd: Option<Vec<u8>>) -> Payload {
        let kernel =
            Kernel { format: Format::Image, offset: 0, bytes: vec![1; 8], memory: 0x20_0001 };
        Payload { kernel, initrd, append: "quiet".into() }
    }

    fn owner(memory: u64) -> Owner {
        let content =
            Content::Kernel { kernel: payload(None).kernel, initrd: None, append: String::new() };
        let mut vm = Vm::new(Said::new(Name::try_from("a").unwrap(), "a.toml:1: name"), content);
        vm.memory = Said::new(memory, "a.toml:3: memory");
        let function = Function { address: "00:02.0".parse().unwrap(), reset: Reset::Auto };
        Owner { vm, cpus: vec![2, 3], functions: vec![function] }
    }

    #[test]
    fn the_hypervisor_reads_what_is_written() {
        let bytes = write(&[owner(16 << 20)], &[payload(Some(vec![7; 5]))], true).unwrap();
        let bundle = Bundle::parse(&bytes).unwrap();
        let vm = &bundle.vms()[0];
        assert_eq!((vm.name.as_str(), &vm.cpus[..], vm.memory), ("a", &[2, 3][..], 16 << 20));
        assert_eq!((vm.entry, vm.kernel.data), (Ipa::new(0x4020_0000), &[1; 8][..]));
        // Behind the kernel's memory, not merely behind its bytes.
        assert_eq!(vm.initrd.as_ref().unwrap().load, Ipa::new(0x4060_0000));
        assert_eq!(vm.functions[0].address.to_string(), "00:02.0");
        assert_eq!(vm.device_tree.load, guest_map::RAM);
    }

    #[test]
    fn a_vm_sees_an_smmu_where_the_hardware_nests_unless_its_manifest_says_otherwise() {
        for (asked, nested, found) in [
            (Stage1::Default, true, Stage1::Nested),
            (Stage1::Default, false, Stage1::None),
            (Stage1::None, true, Stage1::None),
            (Stage1::Nested, false, Stage1::Nested),
        ] {
            let mut owner = owner(16 << 20);
            owner.vm.smmu.stage1.value = asked;
            let bytes = write(&[owner], &[payload(None)], nested).unwrap();
            let bundle = Bundle::parse(&bytes).unwrap();
            let vm = &bundle.vms()[0];
            let tree = String::from_utf8_lossy(vm.device_tree.data);
            assert_eq!((vm.stage1, tree.contains("arm,smmu-v3")), (found, found == Stage1::Nested));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        payload(Some(vec![0; 0x20_0000])).check_fits(&owner(8 << 20).vm).unwrap();
        let error = payload(Some(vec![0; 0x20_0001])).check_fits(&owner(8 << 20).vm).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::BadInput);
        assert!(
            error.to_string().starts_with("a.toml:3: memory: 8M is too little for VM a"),
            "{error}"
        );
        assert!(error.to_string().contains("take 10M"), "{error}");
    }
}
