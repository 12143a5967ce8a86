//! `cargo xtask lab`: real KVM hosts on any machine.
//!
//! The crate `ferry-lab` does the work; here are its commands. What a program in a host says goes to
//! standard output and nothing else does: progress goes to standard error.

mod changes;
mod probe;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use ferry_lab::files::quoted;
use ferry_lab::pair::Step;
use ferry_lab::{Host, Job, Lab, Programs, Side};

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

/// What to do in the lab.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the hosts, and which of them are prepared
    List,
    /// Fetches what hosts need: kernel, emulator, tools; a second call finds it there
    Prepare {
        /// Hosts, as `amd/6.12/EPYC-Rome`
        #[arg(required_unless_present = "smoke")]
        hosts: Vec<String>,
        /// The two hosts of the quick tests
        #[arg(long)]
        smoke: bool,
    },
    /// Boots a host, runs a static program there, and brings back what it says and its status
    Run {
        /// The host, as `amd/6.12/EPYC-Rome`
        host: String,
        #[command(flatten)]
        options: Options,
        /// Folder whose files the program finds in its working folder
        #[arg(long, value_name = "FOLDER")]
        files_in: Option<PathBuf>,
        /// Folder for the files that the program leaves in its working folder
        #[arg(long, value_name = "FOLDER")]
        files: Option<PathBuf>,
        /// The program: `ferry` is this tree's, another a file here or a tool of busybox
        #[arg(last = true, required = true, value_name = "PROGRAM [ARGS]")]
        program: Vec<String>,
    },
    /// Boots two hosts and runs steps on them, one after another; AMD's have a network between them, and
    /// what a step leaves in the folder `$CARRY` the next one finds there, on either side
    Pair {
        /// The host that guests come from; `$SOURCE` is its address in the network
        source: String,
        /// The host that guests go to; `$TARGET` is its address in the network
        target: String,
        #[command(flatten)]
        options: Options,
        /// Shell scripts with the side that they run on: `source: ferry run &`
        #[arg(last = true, required = true, value_name = "SIDE: SCRIPT")]
        steps: Vec<String>,
    },
    /// A shell in a host
    Shell {
        /// The host
        host: String,
        #[command(flatten)]
        options: Options,
    },
    /// Takes hosts' profiles into the catalogue and shows what changed
    Probe {
        /// Hosts; without any, all that the catalogue has
        hosts: Vec<String>,
        /// Changes no file, and fails where a profile differs from its file
        #[arg(long)]
        check: bool,
    },
    /// Removes everything that was fetched
    Clean,
    /// Measures the seconds from start to /dev/kvm of each prepared kind of host, and of the quick tests
    Bench,
}

/// What a host starts with.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A program or file of this machine that the host has as /lab/bin/NAME
    #[arg(long = "with", value_name = "FILE")]
    with: Vec<PathBuf>,
    /// How long one program or step may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The host's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// A parameter of the module kvm
    #[arg(long = "kvm", value_name = "NAME=VALUE")]
    kvm: Vec<String>,
    /// A Linux guest in /lab/linux (vmlinuz, initramfs), ferry-load, and a bridge br0 with taps tap0 and tap1
    #[arg(long)]
    linux: bool,
    /// Leaves KVM's tolerance for TSC frequencies as it is by itself
    #[arg(long)]
    strict_tsc: bool,
}

impl Options {
    fn job(&self) -> Result<Job, Failure> {
        let mut job = Job::new().memory(self.memory);
        if self.strict_tsc {
            job = job.strict_tsc();
        }
        for parameter in &self.kvm {
            job = job.kvm_parameter(parameter);
        }
        for file in &self.with {
            job = with(job, file)?;
        }
        Ok(job)
    }

    const fn within(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// A program of this machine beside what the host has.
fn with(job: Job, file: &Path) -> Result<Job, Failure> {
    ferry_lab::check_static(file)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(job.program(&name, file))
}

/// Carries the command out; the status is that of the program in the host, if there was one.
pub(crate) fn run(tree: &Tree, command: Command) -> Result<ExitCode, Failure> {
    end_with_parent();
    let lab = Lab::open();
    match command {
        Command::List => {
            list(&lab);
            Ok(())
        }
        Command::Prepare { hosts, smoke } => {
            let mut hosts = parse_all(&hosts)?;
            if smoke {
                hosts.extend(Host::smoke());
            }
            prepare(&lab, &hosts)
        }
        Command::Run { host, options, files_in, files, program } => {
            // A script may call `ferry` as well.
            let host = Host::parse(&host)?;
            let mut job = job(tree, &lab, &host, &options)?;
            if let Some(folder) = files_in {
                job = job.files_in(&folder)?;
            }
            let run = Run { host, job, within: options.within(), files, program };
            return run.perform(&lab);
        }
        Command::Pair { source, target, options, steps } => {
            return pair(tree, &lab, &[Host::parse(&source)?, Host::parse(&target)?], &options, &steps);
        }
        Command::Shell { host, options } => {
            let host = Host::parse(&host)?;
            lab.shell(&host, &job(tree, &lab, &host, &options)?)?;
            Ok(())
        }
        Command::Probe { hosts, check } => probe::run(tree, &lab, &hosts, check),
        Command::Clean => lab.cache().clean().map_err(Failure::from),
        Command::Bench => bench(tree, &lab),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// cargo starts this program: whoever ends cargo means this, too. Hosts end with this program.
fn end_with_parent() {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
}

fn parse_all(names: &[String]) -> Result<Vec<Host>, Failure> {
    names.iter().map(|name| Host::parse(name).map_err(Failure::from)).collect()
}

fn progress(text: &str) {
    say::aside(&format!("lab: {text}"));
}

fn list(lab: &Lab) {
    for host in Host::all() {
        let prepared = if lab.is_prepared(&host) { lab.release(&host) } else { None };
        match prepared {
            Some(release) => say::line(&format!("{:<34} prepared, kernel {release}", host.to_string())),
            None => say::line(&host),
        }
    }
}

/// Prepares the hosts; a call that finds everything there says nothing.
fn prepare(lab: &Lab, hosts: &[Host]) -> Result<(), Failure> {
    let start = Instant::now();
    let missing: Vec<Host> = hosts.iter().filter(|host| !lab.is_prepared(host)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    lab.prepare(&missing, &progress)?;
    progress(&format!("prepared in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// The job with this tree's `ferry`.
fn with_ferry(tree: &Tree, host: &Host, job: Job) -> Result<Job, Failure> {
    Ok(job.program("ferry", &programs(tree).ferry(host.vendor.architecture())?))
}

fn programs(tree: &Tree) -> Programs<'_> {
    Programs { root: &tree.root, target: &tree.target, say: &progress }
}

/// What the host starts with, this tree's programs included; fetches what is not there.
fn job(tree: &Tree, lab: &Lab, host: &Host, options: &Options) -> Result<Job, Failure> {
    prepare(lab, std::slice::from_ref(host))?;
    let job = with_ferry(tree, host, options.job()?)?;
    if !options.linux {
        return Ok(job);
    }
    lab.prepare_linux(std::slice::from_ref(host), &progress)?;
    let load = programs(tree).load(host.vendor.architecture())?;
    Ok(job.program("ferry-load", &load).linux(lab.linux(host, &load)?))
}

/// A program for one host.
struct Run {
    host: Host,
    job: Job,
    within: Duration,
    files: Option<PathBuf>,
    program: Vec<String>,
}

impl Run {
    fn perform(self, lab: &Lab) -> Result<ExitCode, Failure> {
        let Self { host, mut job, within, files, program } = self;
        let mut words = program.clone();
        let named = Path::new(&program[0]);
        if program[0] != "ferry" && named.is_file() {
            job = with(job, named)?;
            words[0] = format!("/lab/bin/{}", named.file_name().unwrap_or_default().to_string_lossy());
        }
        let mut machine = lab.boot(&host, &job)?;
        progress(&format!("{host} was up after {:.1} s", machine.booted().as_secs_f64()));
        let line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let status = machine.run_into(&line, within, &mut pass_on)?;
        if let Some(folder) = files {
            machine.fetch("/files", &folder, within)?;
        }
        Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
    }
}

/// Gives on what a program in a host says.
fn pass_on(side: Side, bytes: &[u8]) {
    // Whoever reads it may have gone; the program's status is told all the same.
    let _ = match side {
        Side::Out => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Side::Err => std::io::stderr().write_all(bytes),
    };
}

fn pair(
    tree: &Tree,
    lab: &Lab,
    hosts: &[Host; 2],
    options: &Options,
    steps: &[String],
) -> Result<ExitCode, Failure> {
    let steps = steps.iter().map(|step| Step::parse(step)).collect::<Result<Vec<_>, _>>()?;
    let [source, target] = hosts;
    let (source, target) = (job(tree, lab, source, options)?, job(tree, lab, target, options)?);
    let mut pair = lab.pair((&hosts[0], &source), (&hosts[1], &target))?;
    for step in &steps {
        let side = if step.on_target { "target" } else { "source" };
        progress(&format!("{side}: {}", step.script));
        let status = pair.run_into(step, options.within(), &mut pass_on)?;
        if status != 0 {
            progress(&format!("the step ended with status {status}"));
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds from start to `/dev/kvm`, for one host of each vendor and kernel that is prepared, and of the quick
/// tests.
fn bench(tree: &Tree, lab: &Lab) -> Result<(), Failure> {
    let mut hosts: Vec<Host> = Host::all();
    hosts.retain(|host| lab.is_prepared(host));
    hosts.dedup_by_key(|host| (host.vendor, host.kernel));
    if hosts.is_empty() {
        return Err(Failure::Unknown("no host is prepared: `cargo xtask lab prepare --smoke`".to_owned()));
    }
    say::line(&"seconds from start to /dev/kvm");
    for host in hosts {
        let machine = lab.boot(&host, &Job::new())?;
        say::line(&format!("{:<34} {:>6.1}", host.to_string(), machine.booted().as_secs_f64()));
    }
    // Built beforehand: a build is no part of it.
    smoke(tree, &["--no-run"])?;
    let start = Instant::now();
    smoke(tree, &[])?;
    say::line(&format!("{:<34} {:>6.1}", "the quick tests in the lab", start.elapsed().as_secs_f64()));
    Ok(())
}

/// The quick tests, as `cargo xtask test` runs them.
fn smoke(tree: &Tree, arguments: &[&str]) -> Result<(), Failure> {
    let own = std::env::current_exe().map_err(Failure::file("find", Path::new("xtask")))?;
    let mut command = process::Command::new(own);
    command.args(["test", "--lab=smoke", "-p", "ferry-lab", "--test", "hosts"]).args(arguments);
    run::capture(command.current_dir(&tree.root)).map(drop)
}
