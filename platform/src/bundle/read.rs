//! Reading a bundle in place.

use core::str::FromStr;

use heapless::Vec;
use sha2::{Digest, Sha256};
use smmu::addr::Ipa;

use super::check::{self, place};
use super::{
    BundleError, DmaAtBoot, Function, Image, ImageKind, MAX_FUNCTIONS, MAX_VMS, OnCrashKexec,
    OnExit, Problem, Reopen, Reset, Stage1, VmConfig, key,
};
use crate::dt::Path;
use crate::fdt::{self, Node, Tree};
use crate::name;
use crate::pcie::Bdf;
use crate::text::NotAWord;

/// A bundle whose structure and configurations were checked; its data are checked by [`Bundle::verify`].
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    images: Node<'a>,
    vms: Vec<VmConfig<'a>, MAX_VMS>,
}

impl<'a> Bundle<'a> {
    /// Reads the bundle at the start of `bytes`; others may follow.
    ///
    /// # Errors
    ///
    /// A [`BundleError`] names the first node or VM that is wrong.
    #[inline(never)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let whole = |problem| BundleError { place: place(&["/"]), problem };
        let root = Tree::open(bytes).map_err(|error| whole(Problem::NotATree(error)))?.root();

        let images = root.child("images").ok_or_else(|| whole(Problem::NoNode("/images")))?;
        let configurations = root
            .child("configurations")
            .ok_or_else(|| whole(Problem::NoNode("/configurations")))?;
        let mut vms = Vec::new();
        for node in configurations.children() {
            let at = At { node, path: place(&["/configurations/", node.name()]) };
            vms.push(vm(&at, images)?)
                .map_err(|_| whole(Problem::TooMany { what: "VMs", limit: MAX_VMS }))?;
        }
        check::check(&vms)?;
        Ok(Self { images, vms })
    }

    /// Returns the VMs, in the bundle's order.
    pub fn vms(&self) -> &[VmConfig<'a>] {
        &self.vms
    }

    /// Checks every image's data against its hash.
    ///
    /// # Errors
    ///
    /// [`Problem::WrongHash`] for the first image whose data changed on the way.
    #[inline(never)]
    pub fn verify(&self) -> Result<(), BundleError> {
        for node in self.images.children() {
            let at = At { node, path: place(&["/images/", node.name()]) };
            let data = at.needed("data")?;
            if Sha256::digest(data).as_slice() != at.hash()? {
                return Err(at.error(Problem::WrongHash));
            }
        }
        Ok(())
    }
}

/// A node and where it is.
struct At<'a> {
    node: Node<'a>,
    path: Path,
}

impl<'a> At<'a> {
    fn error(&self, problem: Problem) -> BundleError {
        BundleError { place: self.path.clone(), problem }
    }

    fn malformed(&self, property: &'static str, expected: &'static str) -> BundleError {
        self.error(Problem::Malformed { property, expected })
    }

    fn needed(&self, property: &'static str) -> Result<&'a [u8], BundleError> {
        self.node.value(property).ok_or_else(|| self.error(Problem::NoProperty(property)))
    }

    fn text(&self, property: &'static str) -> Result<Option<&'a str>, BundleError> {
        match self.node.value(property).map(fdt::text) {
            None => Ok(None),
            Some(None) => Err(self.malformed(property, "a string")),
            Some(text) => Ok(text),
        }
    }

    /// Reads a word, or returns its default.
    fn word<T>(&self, property: &'static str) -> Result<T, BundleError>
    where
        T: Default + FromStr<Err = NotAWord>,
    {
        match self.text(property)? {
            None => Ok(T::default()),
            Some(text) => {
                text.parse().map_err(|NotAWord { expected }| self.malformed(property, expected))
            }
        }
    }

    /// Reads an address or size of one or two cells.
    fn number(&self, property: &'static str) -> Result<u64, BundleError> {
        let value = self.needed(property)?;
        if let Ok(cell) = <[u8; 4]>::try_from(value) {
            return Ok(u64::from(u32::from_be_bytes(cell)));
        }
        match <[u8; 8]>::try_from(value) {
            Ok(cells) => Ok(u64::from_be_bytes(cells)),
            Err(_) => Err(self.malformed(property, "one or two cells")),
        }
    }

    /// Returns the SHA-256 that an image carries.
    fn hash(&self) -> Result<&'a [u8], BundleError> {
        let hash = self.node.children().find(|node| node.text("algo") == Some("sha256"));
        let hash = hash.and_then(|node| node.value("value"));
        match hash {
            None => Err(self.error(Problem::NoNode("hash-1 with algo \"sha256\""))),
            Some(hash) if hash.len() == 32 => Ok(hash),
            Some(_) => Err(self.malformed("value", "32 bytes of SHA-256")),
        }
    }

    /// Refuses properties of ours that this version does not know: they would be silently without effect.
    fn only_known(&self, known: &[&str]) -> Result<(), BundleError> {
        match self.node.properties().find(|property| {
            property.name().starts_with(key::PREFIX) && !known.contains(&property.name())
        }) {
            None => Ok(()),
            Some(property) => Err(self.error(Problem::UnknownProperty(
                property.name().chars().take(32).filter(char::is_ascii).collect(),
            ))),
        }
    }
}

#[inline(never)]
fn vm<'a>(at: &At<'a>, images: Node<'a>) -> Result<VmConfig<'a>, BundleError> {
    at.only_known(key::OF_VM)?;
    let name = at.text(key::NAME)?.ok_or_else(|| at.error(Problem::NoProperty(key::NAME)))?;
    let name = name::parse(name).map_err(|error| at.error(Problem::Name(error)))?;
    let (cells, rest) = at.needed(key::CPUS)?.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(at.malformed(key::CPUS, "a list of CPU indices"));
    }
    let mut cpus = Vec::new();
    for cell in cells {
        let limit = cpus.capacity();
        cpus.push(u32::from_be_bytes(*cell))
            .map_err(|_| at.error(Problem::TooMany { what: "CPUs", limit }))?;
    }
    let memory = at.number(key::MEMORY)?;
    let needed = |kind: ImageKind| {
        image(at, images, kind)?.ok_or_else(|| at.error(Problem::NoProperty(kind.property())))
    };
    let (kernel, kernel_node) = needed(ImageKind::Kernel)?;
    let (device_tree, _) = needed(ImageKind::DeviceTree)?;
    let initrd = image(at, images, ImageKind::Initrd)?.map(|(image, _)| image);
    Ok(VmConfig {
        name,
        cpus,
        memory,
        kernel,
        entry: Ipa::new(kernel_node.number("entry")?),
        initrd,
        device_tree,
        on_exit: at.word::<OnExit>(key::ON_EXIT)?,
        stage1: at.word::<Stage1>(key::STAGE1)?,
        dma_at_boot: at.word::<DmaAtBoot>(key::DMA_AT_BOOT)?,
        on_crash_kexec: at.word::<OnCrashKexec>(key::ON_CRASH_KEXEC)?,
        reopen: at.word::<Reopen>(key::REOPEN)?,
        functions: functions(at)?,
    })
}

fn functions(at: &At<'_>) -> Result<Vec<Function, MAX_FUNCTIONS>, BundleError> {
    let mut functions = Vec::new();
    // A bundle that somebody signed for U-Boot has other nodes as well.
    for node in at.node.children().filter(|node| !node.name().starts_with("signature")) {
        let at = At { node, path: place(&[&at.path, "/", node.name()]) };
        at.only_known(key::OF_FUNCTION)?;
        let address =
            at.text(key::ADDRESS)?.ok_or_else(|| at.error(Problem::NoProperty(key::ADDRESS)))?;
        let address = Bdf::from_str(address).map_err(|error| at.error(Problem::Address(error)))?;
        let reset = at.word::<Reset>(key::RESET)?;
        functions.push(Function { address, reset }).map_err(|_| {
            at.error(Problem::TooMany { what: "functions of one VM", limit: MAX_FUNCTIONS })
        })?;
    }
    Ok(functions)
}

/// Follows a configuration's reference to an image.
fn image<'a>(
    at: &At<'a>,
    images: Node<'a>,
    kind: ImageKind,
) -> Result<Option<(Image<'a>, At<'a>)>, BundleError> {
    let Some(name) = at.text(kind.property())? else { return Ok(None) };
    let node = images
        .children()
        .find(|image| image.name() == name)
        .ok_or_else(|| at.error(Problem::NoImage(kind)))?;
    let at = At { node, path: place(&["/images/", name]) };
    if at.text("type")? != Some(kind.type_()) {
        return Err(at.malformed("type", kind.type_()));
    }
    if at.text("arch")? != Some("arm64") {
        return Err(at.malformed("arch", "\"arm64\""));
    }
    if at.text("compression")?.is_some_and(|compression| compression != "none") {
        return Err(at.malformed("compression", "\"none\""));
    }
    at.hash()?;
    let image = Image { data: at.needed("data")?, load: Ipa::new(at.number("load")?) };
    Ok(Some((image, at)))
}
