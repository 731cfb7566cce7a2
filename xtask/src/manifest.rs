//! VM manifests: TOML in, a [`Vm`] or one precise refusal out.
//!
//! A refusal names file, line and key, says what is wrong, and what would be right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use platform::bundle::{
    DmaAtBoot, Function, MAX_CPUS, MAX_FUNCTIONS, OnCrashKexec, OnExit, Reopen, Reset, Stage1,
};
use platform::pcie::Bdf;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::exit::bad_input;
use crate::kernel::Kernel;
use crate::size;
use crate::vm::{Content, Cpus, ROGUE, Said, VICTIM, Vm, check_expected};

/// A manifest as it is written; every value that can be wrong in more ways than its type keeps its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    name: Spanned<String>,
    cpus: Option<Spanned<RawCpus>>,
    memory: Option<Spanned<String>>,
    kernel: Option<Spanned<PathBuf>>,
    builtin: Option<Spanned<RawRole>>,
    initrd: Option<Spanned<PathBuf>>,
    append: Option<String>,
    expect: Option<Spanned<String>>,
    on_exit: Option<Spanned<OnExit>>,
    #[serde(default)]
    smmu: RawSmmu,
    #[serde(default)]
    pci: Vec<RawPci>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawSmmu {
    stage1: Option<Spanned<Stage1>>,
    dma_at_boot: DmaAtBoot,
    on_crash_kexec: Option<Spanned<OnCrashKexec>>,
    reopen: Option<Spanned<Reopen>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPci {
    address: Spanned<Bdf>,
    #[serde(default)]
    reset: Reset,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRole {
    Victim,
    Rogue,
}

struct RawCpus(Cpus);

impl<'de> Deserialize<'de> for RawCpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawCpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of CPUs such as 2, or a list of physical CPUs such as [2, 3]")
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<RawCpus, E> {
                let count = u32::try_from(count).map_err(|_| E::custom("a VM has 1 to 16 CPUs"))?;
                Ok(RawCpus(Cpus::Count(count)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawCpus, A::Error> {
                let mut cpus = Vec::new();
                while let Some(cpu) = list.next_element()? {
                    cpus.push(cpu);
                }
                Ok(RawCpus(Cpus::These(cpus)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Reads the manifest at `path`, and the files it names.
///
/// # Errors
///
/// Bad input, with file, line and key.
pub fn read(path: &Path) -> Result<Vm> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        bad_input(format!("{}: {error}: name a readable manifest", path.display()))
    })?;
    parse(path, &text)
}

/// Reads the manifest `text` as that of `path`, and the files it names.
///
/// # Errors
///
/// Bad input, with file, line and key.
pub fn parse(path: &Path, text: &str) -> Result<Vm> {
    let source = Source { path, text };
    let raw = source.decode()?;
    source.check(raw)
}

/// One manifest's text.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn decode(&self) -> Result<Raw> {
        toml::from_str(self.text).map_err(|error| {
            let message = error.message();
            let span = error.span().unwrap_or(0..0);
            let inside = self.key_at(&span);
            if let Some(missing) =
                message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'))
            {
                let key = match inside.as_str() {
                    "" => missing.to_owned(),
                    table => format!("{table}.{missing}"),
                };
                return self.refuse_key(&span, &key, "the key is missing: add it");
            }
            match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
                Some((_, known)) => {
                    let known =
                        known.trim_start_matches(", expected").trim_start_matches(" one of").trim();
                    self.refuse_key(
                        &span,
                        &inside,
                        &format!("there is no such key here: remove it, or use {known}"),
                    )
                }
                None if inside.is_empty() => self.refuse_key(&span, "TOML", message),
                None => self.refuse_key(&span, &inside, message),
            }
        })
    }

    fn check(&self, raw: Raw) -> Result<Vm> {
        let name = platform::name::parse(raw.name.get_ref())
            .map_err(|error| self.refuse(&raw.name, format!("{error}")))?;
        let name = Said::new(name, self.origin(&raw.name.span()));
        let content = self.content(&raw)?;
        let mut vm = Vm::new(name, content);
        if let Some(cpus) = &raw.cpus {
            self.check_cpus(cpus)?;
            vm.cpus = Said::new(cpus.get_ref().0.clone(), self.origin(&cpus.span()));
        }
        if let Some(memory) = &raw.memory {
            let bytes = size::parse_vm_memory(memory.get_ref())
                .map_err(|error| self.refuse(memory, error.to_string()))?;
            vm.memory = Said::new(bytes, self.origin(&memory.span()));
        }
        if let Some(expect) = raw.expect {
            check_expected(expect.get_ref()).map_err(|why| self.refuse(&expect, why))?;
            vm.expect.push(expect.into_inner());
        }
        if let Some(on_exit) = raw.on_exit {
            vm.on_exit = Said::new(*on_exit.get_ref(), self.origin(&on_exit.span()));
        }
        self.check_smmu(&raw.smmu)?;
        if let Some(stage1) = raw.smmu.stage1 {
            vm.smmu.stage1 = Said::new(*stage1.get_ref(), self.origin(&stage1.span()));
        }
        vm.smmu.dma_at_boot = raw.smmu.dma_at_boot;
        vm.smmu.on_crash_kexec =
            raw.smmu.on_crash_kexec.map_or_else(Default::default, Spanned::into_inner);
        vm.smmu.reopen = raw.smmu.reopen.map_or_else(Default::default, Spanned::into_inner);
        for pci in raw.pci {
            let function = Function { address: *pci.address.get_ref(), reset: pci.reset };
            if let Some(other) =
                vm.functions.iter().find(|other| other.value.address == function.address)
            {
                let message =
                    format!("{} is listed twice, first at {}", function.address, other.origin);
                return Err(self.refuse(&pci.address, message));
            }
            if vm.functions.len() == MAX_FUNCTIONS {
                let message =
                    format!("a VM owns at most {MAX_FUNCTIONS} functions: give some to another VM");
                return Err(self.refuse(&pci.address, message));
            }
            vm.functions.push(Said::new(function, self.origin(&pci.address.span())));
        }
        Ok(vm)
    }

    fn content(&self, raw: &Raw) -> Result<Content> {
        let append = raw.append.clone().unwrap_or_default();
        match (&raw.kernel, &raw.builtin) {
            (Some(kernel), None) => Ok(Content::Kernel {
                kernel: Kernel::parse(&self.read(kernel)?)
                    .map_err(|error| self.refuse(kernel, error.to_string()))?,
                initrd: raw.initrd.as_ref().map(|initrd| self.read_filled(initrd)).transpose()?,
                append,
            }),
            (None, Some(builtin)) => match &raw.initrd {
                Some(initrd) => {
                    Err(self.refuse(initrd, "a built-in guest has no initrd: remove it"))
                }
                None => {
                    let role = match builtin.get_ref() {
                        RawRole::Victim => VICTIM,
                        RawRole::Rogue => ROGUE,
                    };
                    Ok(Content::BuiltIn { role: role.into(), append })
                }
            },
            (Some(kernel), Some(_)) => {
                Err(self.refuse(kernel, "a VM has either kernel or builtin: remove one of them"))
            }
            (None, None) => Err(self.refuse_key(
                &(0..0),
                "kernel",
                "the key is missing: add kernel = \"FILE\", or builtin = \"victim\" or \"rogue\"",
            )),
        }
    }

    fn check_cpus(&self, cpus: &Spanned<RawCpus>) -> Result<()> {
        let limit = u32::try_from(MAX_CPUS).unwrap_or(u32::MAX);
        let RawCpus(asked) = cpus.get_ref();
        if asked.count() == 0 || asked.count() > limit {
            return Err(self.refuse(cpus, format!("a VM has 1 to {limit} CPUs")));
        }
        if let Cpus::These(list) = asked {
            for (index, cpu) in list.iter().enumerate() {
                if *cpu >= limit {
                    return Err(self.refuse(
                        cpus,
                        format!("there is no CPU {cpu}: the largest is {}", limit - 1),
                    ));
                }
                if list[..index].contains(cpu) {
                    return Err(
                        self.refuse(cpus, format!("CPU {cpu} is listed twice: list it once"))
                    );
                }
            }
        }
        Ok(())
    }

    /// A VM that sees no SMMU has no driver of one: nobody opens with it what is closed, and there is no stage 1 to hand on.
    fn check_smmu(&self, smmu: &RawSmmu) -> Result<()> {
        if smmu.stage1.as_ref().is_none_or(|stage1| *stage1.get_ref() != Stage1::None) {
            return Ok(());
        }
        if let Some(reopen) = smmu.reopen.as_ref().filter(|it| *it.get_ref() == Reopen::Smmu) {
            let what = "a VM with stage1 = \"none\" has no driver of an SMMU: say \"device\"";
            return Err(self.refuse(reopen, what));
        }
        let kept = |it: &&Spanned<OnCrashKexec>| *it.get_ref() == OnCrashKexec::Preserve;
        match smmu.on_crash_kexec.as_ref().filter(kept) {
            Some(kept) => {
                let what = "a VM with stage1 = \"none\" has none to preserve: say \"quiesce\" or \"abort\"";
                Err(self.refuse(kept, what))
            }
            None => Ok(()),
        }
    }

    /// Reads a file that the manifest names, relative to the manifest itself.
    fn read(&self, file: &Spanned<PathBuf>) -> Result<Vec<u8>> {
        let path = self.path.parent().unwrap_or(Path::new("")).join(file.get_ref());
        std::fs::read(&path).map_err(|error| {
            self.refuse(
                file,
                format!(
                    "{}: {error}: name a readable file, relative to the manifest",
                    path.display()
                ),
            )
        })
    }

    fn read_filled(&self, file: &Spanned<PathBuf>) -> Result<Vec<u8>> {
        let bytes = self.read(file)?;
        if bytes.is_empty() { Err(self.refuse(file, "the file is empty")) } else { Ok(bytes) }
    }

    fn refuse<T>(&self, at: &Spanned<T>, what: impl fmt::Display) -> anyhow::Error {
        bad_input(format!("{}: {what}", self.origin(&at.span())))
    }

    fn refuse_key(&self, span: &Range<usize>, key: &str, what: &str) -> anyhow::Error {
        bad_input(format!("{}:{}: {key}: {what}", self.path.display(), self.line(span)))
    }

    /// `FILE:LINE: KEY`.
    fn origin(&self, span: &Range<usize>) -> String {
        format!("{}:{}: {}", self.path.display(), self.line(span), self.key_at(span))
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// The key that a piece of the text belongs to, empty for the document itself.
    fn key_at(&self, span: &Range<usize>) -> String {
        let (table, _) = DeTable::parse_recoverable(self.text);
        in_table(table.get_ref(), span).unwrap_or_default()
    }
}

fn in_table(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name: &str = key.get_ref();
        if covers(&key.span(), span) {
            return Some(name.to_owned());
        }
        let deeper = match value.get_ref() {
            DeValue::Table(table) => in_table(table, span).map(|inner| format!(".{inner}")),
            DeValue::Array(list) => {
                list.iter().enumerate().find_map(|(index, item)| match item.get_ref() {
                    DeValue::Table(table) => match in_table(table, span) {
                        Some(inner) => Some(format!("[{index}].{inner}")),
                        None => covers(&item.span(), span).then(|| format!("[{index}]")),
                    },
                    _ => None,
                })
            }
            _ => None,
        };
        let inside = deeper.or_else(|| covers(&value.span(), span).then(String::new))?;
        Some(format!("{name}{inside}"))
    })
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end && outer.start < outer.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    /// Writes a manifest beside a flat kernel `k`, a damaged one `bad.gz` and an empty file, and reads it.
    fn read_text(text: &str) -> Result<Vm> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("k", &b"\x1f\x20\x03\xd5"[..]), ("bad.gz", &[0x1f, 0x8b, 8, 0]), ("empty", &[])]
        {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let path = folder.path().join("vm.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| {
            let code = Exit::of(&error);
            assert_eq!(code, Exit::BadInput, "{error:#}");
            anyhow::anyhow!("{error:#}").context(code.code())
        })
    }

    fn refusal(text: &str) -> String {
        let error = read_text(text).unwrap_err();
        let message = format!("{:#}", error.root_cause());
        message.split_once("vm.toml:").map_or(message.clone(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn a_full_manifest_is_read() {
        let vm = read_text(
            "name = \"linux0\"\ncpus = [2, 3]\nmemory = \"64M\"\nkernel = \"k\"\ninitrd = \"bad.gz\"\n\
             append = \"quiet\"\nexpect = \"login:\"\non-exit = \"restart\"\n[smmu]\nstage1 = \"nested\"\n\
             dma-at-boot = \"abort\"\non-crash-kexec = \"preserve\"\nreopen = \"smmu\"\n[[pci]]\n\
             address = \"00:02.0\"\nreset = \"bus-master\"\n[[pci]]\naddress = \"01:00.1\"\n",
        )
        .unwrap();
        assert_eq!(vm.name.value, "linux0");
        assert_eq!(vm.cpus.value, Cpus::These(vec![2, 3]));
        assert_eq!(vm.memory.value, 64 << 20);
        assert_eq!(vm.expect, ["login:"]);
        assert_eq!(vm.on_exit.value, OnExit::Restart);
        assert_eq!((vm.smmu.stage1.value, vm.smmu.dma_at_boot), (Stage1::Nested, DmaAtBoot::Abort));
        assert_eq!(
            (vm.smmu.on_crash_kexec, vm.smmu.reopen),
            (OnCrashKexec::Preserve, Reopen::Smmu)
        );
        assert_eq!(vm.functions[0].value.reset, Reset::BusMaster);
        assert_eq!(vm.functions[1].value.address.to_string(), "01:00.1");
        assert!(
            vm.functions[1].origin.ends_with("vm.toml:18: pci[1].address"),
            "{}",
            vm.functions[1].origin
        );
        assert!(matches!(vm.content, Content::Kernel { initrd: Some(_), .. }));
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let vm = read_text("name = \"v\"\nbuiltin = \"victim\"\n").unwrap();
        assert_eq!((vm.cpus.value, vm.memory.value), (Cpus::Count(2), 512 << 20));
        assert_eq!(vm.on_exit.value, OnExit::AsAsked);
        assert_eq!(
            (vm.smmu.stage1.value, vm.smmu.dma_at_boot, vm.smmu.on_crash_kexec, vm.smmu.reopen),
            Default::default()
        );
        assert!(
            matches!(vm.content, Content::BuiltIn { role, append } if role == VICTIM && append.is_empty())
        );
    }

    #[test]
    fn every_refusal_names_line_and_key() {
        let good = "name = \"v\"\nbuiltin = \"victim\"\n";
        for (text, expected) in [
            ("", "1: name: the key is missing"),
            ("name = \"v\"\n", "1: kernel: the key is missing: add kernel = \"FILE\", or builtin"),
            ("name = \"v\"\nname = \"w\"\n", "2: "),
            ("name = v\n", "1: name: string values must be quoted"),
            ("= v\n", "1: TOML: "),
            ("name = \"V\"\nbuiltin = \"rogue\"", "1: name: a name cannot contain 'V'"),
            (
                "name = \"el2\"\nbuiltin = \"rogue\"",
                "1: name: the name el2 belongs to the hypervisor",
            ),
            (
                "name = 3\nbuiltin = \"rogue\"",
                "1: name: invalid type: integer `3`, expected a string",
            ),
            (
                "name = \"v\"\nbuiltin = \"hero\"",
                "2: builtin: unknown variant `hero`, expected `victim` or `rogue`",
            ),
            (
                "name = \"v\"\nbuiltin = \"rogue\"\nkernel = \"k\"",
                "3: kernel: a VM has either kernel or builtin",
            ),
            (
                "name = \"v\"\nbuiltin = \"rogue\"\ninitrd = \"k\"",
                "3: initrd: a built-in guest has no initrd",
            ),
            ("name = \"v\"\nkernel = \"nope\"", "2: kernel: "),
            ("name = \"v\"\nkernel = \"bad.gz\"", "2: kernel: the gzip data is damaged or cut off"),
            ("name = \"v\"\nkernel = \"empty\"", "2: kernel: the file is empty"),
            ("name = \"v\"\nkernel = \"k\"\ninitrd = \"empty\"", "3: initrd: the file is empty"),
            (
                &format!("{good}cpu = 2"),
                "3: cpu: there is no such key here: remove it, or use `name`, `cpus`",
            ),
            (
                &format!("{good}cpus = \"2\""),
                "3: cpus: invalid type: string \"2\", expected a number of CPUs",
            ),
            (&format!("{good}cpus = 0"), "3: cpus: a VM has 1 to 16 CPUs"),
            (&format!("{good}cpus = 17"), "3: cpus: a VM has 1 to 16 CPUs"),
            (&format!("{good}cpus = -1"), "3: cpus: a VM has 1 to 16 CPUs"),
            (&format!("{good}cpus = []"), "3: cpus: a VM has 1 to 16 CPUs"),
            (&format!("{good}cpus = [1, 1]"), "3: cpus: CPU 1 is listed twice"),
            (&format!("{good}cpus = [16]"), "3: cpus: there is no CPU 16"),
            (
                &format!("{good}memory = 512"),
                "3: memory: invalid type: integer `512`, expected a string",
            ),
            (&format!("{good}memory = \"512\""), "3: memory: \"512\" is not a size"),
            (&format!("{good}memory = \"5M\""), "3: memory: \"5M\" is not a multiple of 2M"),
            (&format!("{good}on-exit = \"explode\""), "3: on-exit: "),
            (&format!("{good}expect = \"\""), "3: expect: an empty text"),
            (&format!("{good}[smmu]\nstage2 = \"x\""), "4: smmu.stage2: there is no such key here"),
            (
                &format!("{good}[smmu]\nreopen = \"never\""),
                "4: smmu.reopen: expected \"device\" or \"smmu\"",
            ),
            (
                &format!("{good}[smmu]\nstage1 = \"none\"\nreopen = \"smmu\""),
                "5: smmu.reopen: a VM with stage1 = \"none\" has no driver of an SMMU",
            ),
            (
                &format!("{good}[smmu]\non-crash-kexec = \"preserve\"\nstage1 = \"none\""),
                "4: smmu.on-crash-kexec: a VM with stage1 = \"none\" has none to preserve",
            ),
            (&format!("{good}[[pci]]\nreset = \"auto\""), "3: pci[0].address: the key is missing"),
            (&format!("{good}[[pci]]\naddress = \"0:2\""), "4: pci[0].address: not a PCI address"),
            (
                &format!("{good}[[pci]]\naddress = \"00:20.0\""),
                "4: pci[0].address: no such PCI device number",
            ),
            (
                &format!("{good}[[pci]]\naddress = \"00:02.0\"\n[[pci]]\naddress = \"00:02.0\""),
                "6: pci[1].address: 00:02.0 is listed twice",
            ),
            (
                &format!("{good}[[pci]]\naddress = \"00:02.0\"\nreset = \"no\""),
                "5: pci[0].reset: expected \"auto\"",
            ),
            (&format!("{good}pci = \"00:02.0\""), "3: pci: invalid type"),
        ] {
            let refusal = refusal(text);
            assert!(
                refusal.starts_with(expected),
                "{text:?}\n  gives    {refusal}\n  expected {expected}"
            );
        }
    }

    #[test]
    fn a_manifest_that_is_not_there_is_bad_input() {
        let error = read(Path::new("/nonexistent/vm.toml")).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::BadInput);
        assert!(error.to_string().starts_with("/nonexistent/vm.toml: "), "{error}");
    }

    #[test]
    fn too_many_functions_are_refused_at_the_first_one_too_many() {
        let mut text = "name = \"v\"\nbuiltin = \"victim\"\n".to_owned();
        for index in 0..=MAX_FUNCTIONS {
            text += &format!("[[pci]]\naddress = \"00:{:02x}.{}\"\n", 1 + index / 8, index % 8);
        }
        assert!(
            refusal(&text).starts_with("132: pci[64].address: a VM owns at most 64"),
            "{}",
            refusal(&text)
        );
    }
}
