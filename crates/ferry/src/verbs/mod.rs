//! The verbs, one module each.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod inspect;
pub(crate) mod migrate;
pub(crate) mod probe;
pub(crate) mod receive;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod watch;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use ferry_migrate::RunWatch;
use ferry_vmm::{Backend, Chosen, RunLog};

use crate::cli::{Format, SerialArgs, TestArgs};
use crate::control::host::End;
use crate::error::CliError;
use crate::output;

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

/// Where the guest's serial port writes to, if anywhere.
fn serial_output(args: &SerialArgs, chosen: &Chosen, format: Format) -> Result<Option<Arc<File>>, CliError> {
    let Some(path) = &args.serial else { return Ok(None) };
    if let Chosen::Sim { .. } = chosen {
        return Err(CliError::plain(
            "a guest in the simulated machine has no serial port: leave --serial out, or use --backend kvm",
        ));
    }
    let is_stdout = path.as_os_str() == "-";
    if is_stdout && format == Format::Json {
        return Err(CliError::usage("--serial - would mix the guest's output with the JSON: name a file"));
    }
    let opened = if is_stdout {
        std::io::stdout().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::options().create(true).append(true).open(path)
    };
    opened.map(|file| Some(Arc::new(file))).map_err(|error| {
        CliError::plain(format!("the serial port's output {} cannot be opened: {error}", path.display()))
    })
}

/// Says how a process with a guest ended.
fn say_end(end: &End, id: &str, format: Format) {
    match (format, end) {
        (Format::Json, End::Moved(report)) => output::json(&serde_json::json!({ "moved": report })),
        (Format::Json, End::Stopped) => output::json(&serde_json::json!({ "stopped": { "id": id } })),
        (Format::Text, End::Moved(report)) => {
            output::line(&format!("guest `{id}` moved to {} under epoch {}", report.to, report.epoch));
        }
        (Format::Text, End::Stopped) => output::line(&format!("guest `{id}` was ended")),
    }
}
