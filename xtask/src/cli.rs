//! The command line. It is an interface: others script it, so names and exit codes stay.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit::{Exit, bad_input};
use crate::request::Request;
use crate::setup::{self, Needs, Program, State};
use crate::suite::{self, Scope};
use crate::{bench, ci, fuzz, interrupt, run, soak};

/// Portcullis: set up what is missing, build, boot in QEMU, judge.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    max_term_width = 100,
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `cargo xtask` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot in QEMU and exit with a verdict; without options, the built-in demonstration.
    Qemu(Box<QemuArgs>),
    /// Run the tests: host tests, system tests under QEMU, system tests with Linux guests.
    Test(TestArgs),
    /// Run matrices, long loads, long fuzzing and mutants.
    Soak(SoakArgs),
    /// Measure what things cost, beside what they may.
    Bench(BenchArgs),
    /// Fuzz one target.
    Fuzz(FuzzArgs),
    /// Show what is needed and what is there; get what is missing.
    Setup(SetupArgs),
    /// Run every check that a change must pass.
    Ci,
}

/// Where QEMU and the Linux guest's packages come from.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Debian mirror to fetch from, instead of the ones this system is configured with.
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
}

/// How every command ends.
const EXIT_CODES: &str =
    "Exit codes: 0 pass, 1 fail, 2 bad input, 3 missing prerequisite, 124 time limit passed.";

/// `cargo xtask qemu`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct QemuArgs {
    /// Boot Debian's arm64 kernel with an NVMe and a virtio-blk disk as the only VM (guest 0).
    #[arg(long, conflicts_with_all = ["kernel", "initrd"], help_heading = "What to boot")]
    pub linux: bool,
    /// Boot this kernel as the only VM (guest 0): arm64 Image, gzip, EFI zboot or flat binary.
    #[arg(long, value_name = "IMG", help_heading = "What to boot")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for `--kernel`.
    #[arg(long, value_name = "CPIO", requires = "kernel", help_heading = "What to boot")]
    pub initrd: Option<PathBuf>,
    /// Guest 0's kernel parameters.
    #[arg(long, value_name = "STR", allow_hyphen_values = true, help_heading = "What to boot")]
    pub append: Option<String>,
    /// Boot the VM of this manifest as well.
    #[arg(long = "vm", value_name = "FILE.toml", help_heading = "What to boot")]
    pub vms: Vec<PathBuf>,
    /// Same machine, kernel and devices, without the hypervisor; guest 0 only.
    #[arg(long, help_heading = "What to boot")]
    pub native: bool,
    /// Run a named demonstration: shutdown-bypass, no-hook, unaware-successor, reused-tables, named-culprits, or
    /// SOURCE-WAY, such as nvme-kexec (a wrong name lists all).
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["linux", "kernel", "initrd"],
        help_heading = "What to boot"
    )]
    pub scenario: Option<String>,

    /// QEMU to use instead of the one that set-up finds.
    #[arg(long = "qemu", value_name = "BIN", help_heading = "Machine")]
    pub qemu: Option<PathBuf>,
    /// Version of QEMU's `virt` machine, such as 9.1.
    #[arg(long, value_name = "V", help_heading = "Machine")]
    pub machine_version: Option<String>,
    /// Stages the SMMU implements.
    #[arg(long, value_enum, value_name = "STAGE", help_heading = "Machine")]
    pub smmu_stage: Option<SmmuStage>,
    /// CPU model.
    #[arg(long, value_name = "MODEL", help_heading = "Machine")]
    pub cpu: Option<String>,
    /// Interrupt translation service.
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = "Machine")]
    pub its: Switch,
    /// Deterministic run: virtual time follows the instruction count.
    #[arg(long, help_heading = "Machine")]
    pub icount: bool,
    /// Guest 0's CPUs.
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub smp: Option<u32>,
    /// Guest 0's memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub memory: Option<String>,
    /// QEMU device; guest 0 owns it unless a manifest claims its address.
    #[arg(long = "device", value_name = "ARG", help_heading = "Machine")]
    pub devices: Vec<String>,
    /// Passed to QEMU as -blockdev.
    #[arg(long = "blockdev", value_name = "ARG", help_heading = "Machine")]
    pub blockdevs: Vec<String>,
    /// Passed to QEMU as -drive.
    #[arg(long = "drive", value_name = "ARG", help_heading = "Machine")]
    pub drives: Vec<String>,
    /// Passed to QEMU as -netdev.
    #[arg(long = "netdev", value_name = "ARG", help_heading = "Machine")]
    pub netdevs: Vec<String>,
    /// Passed to QEMU as it is.
    #[arg(
        long = "qemu-arg",
        value_name = "ARG",
        allow_hyphen_values = true,
        help_heading = "Machine"
    )]
    pub qemu_args: Vec<String>,

    /// Guest 0's console must print this.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Run")]
    pub expect: Option<String>,
    /// Operator action SECS after QEMU's start: `SECS:kill|restart|off:VM`.
    #[arg(long = "at", value_name = "SECS:ACTION:VM", help_heading = "Run")]
    pub at: Vec<String>,
    /// Write QEMU's SMMU trace here.
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub trace: Option<PathBuf>,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "FILE.json", help_heading = "Run")]
    pub report: Option<PathBuf>,
    /// Write all guests' consoles here.
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub serial: Option<PathBuf>,
    /// End the run SECS after QEMU's start, with exit code 124; only the demonstration has a limit by itself.
    #[arg(long, value_name = "SECS", help_heading = "Run")]
    pub timeout: Option<u64>,
    /// Wait for a debugger on TCP port 1234 before the first instruction.
    #[arg(long, help_heading = "Run")]
    pub gdb: bool,
    /// Type on guest 0's console, line by line; after `!` for the operator: `!kill VM`, `!restart VM`, `!off VM`,
    /// `!report` (`!!text` types `!text`).
    #[arg(long, help_heading = "Run")]
    pub interactive: bool,
    /// How much EL2 says on the console.
    #[arg(long, value_enum, value_name = "L", help_heading = "Run")]
    pub log_level: Option<LogLevel>,
    /// Where to fetch from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Stages of the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SmmuStage {
    /// Both stages, nested.
    Nested,
    /// Stage 2 only.
    #[value(name = "2")]
    Two,
    /// Stage 1 only; the hypervisor refuses it.
    #[value(name = "1")]
    One,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// EL2's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // the usual five
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// Its name on EL2's command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `cargo xtask test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Only what needs no QEMU.
    #[arg(long, group = "scope")]
    pub host: bool,
    /// Only system tests with bare-metal guests.
    #[arg(long, group = "scope")]
    pub qemu: bool,
    /// Only system tests with Linux guests.
    #[arg(long, group = "scope")]
    pub linux: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Where to fetch from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `cargo xtask soak`.
#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// Which one; all without it.
    pub name: Option<String>,
}

/// `cargo xtask bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Write the results here, as JSON.
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

/// `cargo xtask fuzz`.
#[derive(Args, Clone, Debug)]
pub struct FuzzArgs {
    /// What to fuzz.
    pub target: String,
    /// For how long.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub seconds: u64,
    /// How many inputs at most.
    #[arg(long, value_name = "N")]
    pub runs: Option<u64>,
}

impl FuzzArgs {
    /// Builds the target and fuzzes it.
    ///
    /// # Errors
    ///
    /// An unknown target, or one that cannot be built or run.
    pub fn run(&self) -> Result<fuzz::Outcome> {
        let programs = fuzz::Programs::build(std::slice::from_ref(&self.target))?;
        programs.fuzz(&self.target, fuzz::Limit { seconds: self.seconds, runs: self.runs })
    }
}

/// `cargo xtask setup`.
#[derive(Args, Clone, Debug)]
pub struct SetupArgs {
    /// Only report.
    #[arg(long)]
    pub check: bool,
    /// Where to fetch from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Runs `cargo xtask` with this process's arguments; errors go to stderr.
pub fn main() -> Exit {
    run(std::env::args_os())
}

/// Runs `cargo xtask` with `args`, the program's name first; errors go to stderr.
pub fn run<I, T>(args: I) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::BadInput } else { Exit::Pass };
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            return exit;
        }
    };
    match cli.command.execute() {
        Ok(exit) => exit,
        Err(error) => {
            note!("error: {error:#}");
            Exit::of(&error)
        }
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Whatever kept it from reaching a result; [`Exit::of`] tells the exit code.
    pub fn execute(self) -> Result<Exit> {
        match self {
            Self::Qemu(args) => {
                interrupt::watch()?;
                let outcome = run::run(&Request::new(&args)?)?;
                say!("{}", outcome.verdict.to_string().trim_end());
                if let Err(error) = &outcome.written {
                    note!("error: {error:#}");
                }
                Ok(outcome.exit)
            }
            Self::Test(args) => {
                let tally =
                    suite::run(Scope::of(&args), args.filter.as_deref(), &options(&args.source)?)?;
                say!("{tally}");
                Ok(tally.exit())
            }
            Self::Soak(args) => {
                let tally = soak::run(args.name.as_deref(), &setup::Options::default())?;
                say!("{tally}");
                Ok(tally.exit())
            }
            Self::Bench(args) => bench::run(args.json.as_deref(), &setup::Options::default()),
            Self::Fuzz(args) => {
                let outcome = args.run()?;
                say!("{}: {outcome}", args.target);
                Ok(outcome.exit())
            }
            Self::Setup(args) => set_up(&args),
            Self::Ci => {
                let tally = ci::run(&setup::Options::default())?;
                say!("{tally}");
                Ok(tally.exit())
            }
        }
    }
}

fn options(source: &SourceArgs) -> Result<setup::Options> {
    let options = setup::Options { mirror: source.mirror.clone(), ..setup::Options::default() };
    options.validate().map_err(bad_input)?;
    Ok(options)
}

fn set_up(args: &SetupArgs) -> Result<Exit> {
    let options = options(&args.source)?;
    let fetched = Needs { programs: &[], ..Scope::All.needs() };
    if !args.check {
        setup::ensure(&fetched, &options)?;
    }
    let programs = &[Program::Linker, Program::Cpp, Program::Git];
    let items = setup::check(&Needs { programs, ..fetched }, &options);
    for item in &items {
        say!("{item}");
    }
    let all_there = items.iter().all(|item| matches!(item.state, State::Present { .. }));
    Ok(if all_there { Exit::Pass } else { Exit::Missing })
}
