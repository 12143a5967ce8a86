//! The verbs, one module each.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod migrate;
pub(crate) mod probe;
pub(crate) mod receive;
pub(crate) mod recover;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod watch;

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use ferry_migrate::RunWatch;
use ferry_migrate::journal::{Journal, Life, OpenKind, StateFolder, Volatile};
use ferry_protocol::{Epoch, GuestId, InstanceId};
use ferry_vmm::{AnyBuilder, Backend, Chosen, DirtyKind, HugePages, RunLog, fresh_seed};

use crate::cli::{Format, SerialArgs, StateArgs, TestArgs};
use crate::control::host::{End, Shared};
use crate::error::CliError;
use crate::folder;
use crate::output;
use crate::terminal::{self, Raw};

/// Decides the backend; a fall-back is said in one line with its reason.
pub(crate) fn choose(backend: Backend) -> Result<Chosen, CliError> {
    let chosen = backend.choose().map_err(|error| CliError::of(&error))?;
    if let Chosen::Sim { reason: Some(reason) } = &chosen {
        output::note(&format!("ferry: the guest runs in the simulated machine, because {reason}"));
    }
    Ok(chosen)
}

/// Carries out what the tests' hooks ask of the process, and gives the watch of its runs.
fn watch(test: &TestArgs) -> Result<Option<Arc<dyn RunWatch>>, CliError> {
    if test.die_with_parent {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal).map_err(|error| {
            CliError::plain(format!("the end of the parent process cannot be followed: {error}"))
        })?;
    }
    let Some(path) = &test.run_log else { return Ok(None) };
    let log = RunLog::open(path).map_err(|error| {
        CliError::plain(format!("the run log {} cannot be opened: {error}", path.display()))
    })?;
    Ok(Some(Arc::new(log)))
}

/// The journal of this process, and the folder where those of others are; none if it is forgotten.
fn keep(state: &StateArgs, test: &TestArgs) -> Result<(Option<StateFolder>, Arc<dyn Journal>), CliError> {
    let instance = InstanceId(fresh_seed());
    if test.volatile_journal {
        return Ok((None, Arc::new(Volatile::new(instance))));
    }
    let folder = folder::state(state)?;
    let journal = folder.begin(instance).map_err(|error| CliError::of(&error))?;
    Ok((Some(folder), Arc::new(journal)))
}

/// The epoch at which a guest of this name can be born: above every one that was used here. Refused
/// while another may come back, or may run elsewhere, for all that is known here; `unheard`: nobody can
/// have had a guest of this name.
fn birth(folder: &StateFolder, id: &GuestId, unheard: bool) -> Result<Epoch, CliError> {
    let lives = folder.lives().map_err(|error| CliError::of(&error))?;
    if unheard {
        for complaint in lives.iter().filter_map(Life::complaint) {
            output::note(&format!("ferry: {complaint}"));
        }
    } else if let Some(complaint) = lives.unknown(id).find_map(Life::complaint) {
        return Err(CliError::plain(format!(
            "what became of an earlier guest `{id}` is not known: {complaint}; `ferry recover {id}` shows what is, and \
             takes your word on it (--abandon --reason TEXT); without --id a guest gets a name that no other had"
        )));
    }
    if let Some(life) = lives.living_with(id).next() {
        return Err(CliError::plain(format!(
            "a guest `{id}` is in a process that lives (journal {}): choose another --id",
            life.path.display()
        )));
    }
    if let Some(open) = lives.open(Some(id)).first() {
        let what = match &open.kind {
            OpenKind::Given(given) => format!("custody of it may have been given to {}", given.address),
            OpenKind::Taken { .. } => "it may have run here, and its source may wait for a word".into(),
        };
        return Err(CliError::plain(format!(
            "what became of an earlier guest `{id}` is open ({what}, epoch {}): `ferry recover {id}` settles it, or choose another --id",
            open.epoch
        )));
    }
    Ok(lives.highest(id).map_or(Epoch::BIRTH, Epoch::next))
}

/// Where the guest's serial port and virtio consoles write to.
fn serial_output(args: &SerialArgs, chosen: &Chosen, format: Format) -> Result<Vec<Arc<File>>, CliError> {
    let mut output = Vec::new();
    if args.serial.is_none() && !args.console {
        return Ok(output);
    }
    if let Chosen::Sim { .. } = chosen {
        return Err(CliError::plain(
            "a guest in the simulated machine has no serial port: leave --serial and --console out, or use --backend kvm",
        ));
    }
    if args.console {
        terminal::outlive_background();
    }
    let file = args.serial.as_deref().filter(|path| path.as_os_str() != "-");
    let to_stdout = args.console || args.serial.as_deref() != file;
    if to_stdout && format == Format::Json {
        let text = "--serial - and --console would mix the guest's output with the JSON: name a file";
        return Err(CliError::usage(text));
    }
    let failed = |name: &dyn Display, error: &dyn Display| {
        CliError::plain(format!("the serial port's output {name} cannot be opened: {error}"))
    };
    if to_stdout {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned();
        output.push(Arc::new(File::from(stdout.map_err(|error| failed(&"-", &error))?)));
    }
    if let Some(path) = file {
        let opened = File::options().create(true).append(true).open(path);
        output.push(Arc::new(opened.map_err(|error| failed(&path.display(), &error))?));
    }
    Ok(output)
}

/// Makes this terminal the guest's console, if it is to be. The guest runs already: without a console it runs on.
fn attach(args: &SerialArgs, shared: &Arc<Shared>) {
    let raw = if args.console { Raw::enter() } else { Ok(None) };
    let is_terminal = matches!(raw, Ok(Some(_)));
    let attached = raw.and_then(|raw| {
        shared.console.begin(raw);
        if args.console { terminal::pass_on(shared, is_terminal) } else { Ok(()) }
    });
    if let Err(error) = attached {
        output::note(&format!("ferry: the guest runs without this console: {}", error.message));
    }
}

/// What makes the guest's machine here, now or when it restarts.
fn builder(
    chosen: &Chosen,
    watch: Option<Arc<dyn RunWatch>>,
    huge_pages: HugePages,
    dirty: DirtyKind,
    serial: Vec<Arc<File>>,
) -> Result<AnyBuilder, CliError> {
    AnyBuilder::new(chosen, watch)
        .and_then(|builder| builder.with_huge_pages(huge_pages))
        .and_then(|builder| builder.with_dirty(dirty))
        .map(|builder| builder.with_serial_output(serial))
        .map_err(|error| CliError::of(&error))
}

/// Says how a process with a guest ended.
fn say_end(end: &End, id: &str, format: Format) {
    match (format, end) {
        (Format::Json, End::Moved(report)) if report.outcome == "abandoned" => {
            output::json(&serde_json::json!({ "abandoned": report }));
        }
        (Format::Text, End::Moved(report)) if report.outcome == "abandoned" => {
            output::line(&format!("guest `{id}` was given up, as a person decided"));
        }
        (Format::Json, End::Moved(report)) => output::json(&serde_json::json!({ "moved": report })),
        (Format::Json, End::Stopped) => output::json(&serde_json::json!({ "stopped": { "id": id } })),
        (Format::Text, End::Moved(report)) => {
            output::line(&format!("guest `{id}` moved to {} under epoch {}", report.to, report.epoch));
        }
        (Format::Json, End::Off) => output::json(&serde_json::json!({ "off": { "id": id } })),
        (Format::Text, End::Off) => output::line(&format!("guest `{id}` switched itself off")),
        (Format::Text, End::Stopped) => output::line(&format!("guest `{id}` was ended")),
    }
}
