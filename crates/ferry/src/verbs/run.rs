//! `ferry run`: a guest is born here and runs until it is moved away or ended.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::bounded;
use ferry_memory::{Classified, GuestRam, PAGE_SIZE, RamError};
use ferry_migrate::journal::{Journal, JournalError, StateFolder};
use ferry_migrate::{Custody, FileLock, Machine};
use ferry_protocol::journal::{OfGuest, Record};
use ferry_protocol::{Epoch, GuestId};
use ferry_state::Resources;
use ferry_vmm::{
    AnyGuest, Birth, Board, Chosen, Guest, Image, Linux, MAX_IMAGE_BYTES, MachineConfig, Payload, VmmError,
    create, fresh_seed,
};
use indicatif::HumanBytes;
use serde_json::json;

use super::{attach, birth, builder, choose, keep, say_end, serial_output, watch};
use crate::artefact::Artefact;
use crate::cli::{Format, KernelArgs, PayloadName, RunArgs, absolute};
use crate::control::host::{Shared, serve};
use crate::control::{client, server};
use crate::error::{CliError, Kind};
use crate::form::{State, Status};
use crate::noise;
use crate::output;

pub(crate) fn run(args: &RunArgs, format: Format) -> Result<u8, CliError> {
    let mut config = args.guest.config();
    let linux = linux(&args.kernel)?;
    if linux.is_some() {
        config.payload = Payload::Linux;
    }
    let machine = MachineConfig { guest: config, board: Board { linux, devices: args.devices.devices()? } };
    machine.validate().map_err(|error| CliError::usage(error.to_string()))?;
    let unheard = args.id.is_none();
    let id = args.id.clone().map_or_else(name, Ok)?;
    refuse_a_namesake(&id)?;
    let (folder, journal) = keep(&args.state, &args.test)?;
    if let Some(folder) = &folder {
        birth(folder, &id, unheard)?;
    }
    let watch = watch(&args.test)?;
    let chosen = choose(args.guest.backend)?;
    let serial = serial_output(&args.serial, &chosen, format)?;
    let contract = args.contract.as_deref();
    let contract = contract.map(|path| Artefact::find_contract(path, config.cpus)).transpose()?;
    let image = match &args.guest.payload {
        PayloadName::File(path) if args.kernel.kernel.is_none() => Some(image(path, config.memory_bytes)?),
        _ => None,
    };
    let birth = Birth {
        contract: contract.as_ref(),
        image: image.as_ref(),
        board: Some(&machine.board),
        huge_pages: args.guest.huge_pages,
        dirty: args.guest.dirty.kind,
        ..Birth::plain(fresh_seed())
    };
    // The same makes its machine when it restarts.
    let mut builder =
        builder(&chosen, watch.clone(), args.guest.huge_pages, args.guest.dirty.kind, serial.clone())?;
    let mut guest = create(&chosen, &config, birth, watch).map_err(|error| unborn(&error))?;
    if args.test.fill_random {
        // The simulated guest holds its first pages against what it wrote there also before it did: zeros.
        let kept = if matches!(chosen, Chosen::Sim { .. }) { config.working_set_bytes() } else { 0 };
        fill_random(&guest.ram(), kept).map_err(|error| CliError::of(&error))?;
    }
    guest.write_to(&serial);
    take_locks(&mut guest, &id, &args.lock)?;
    let (jobs, wanted) = bounded(8);
    let shared = Shared::new(Some(id.clone()), chosen.name(), jobs, Arc::clone(&journal), args.test.clone());
    let socket = server::serve(&shared, id.as_str())?;
    let pages = guest.report().memory_pages;
    let epoch = be_born(folder.as_ref(), &*journal, &id, unheard)?;
    guest.resume(Custody::born_at(id.clone(), epoch)).map_err(|error| CliError::of(&error))?;
    shared.adopt(guest, &id, epoch);
    match format {
        Format::Json => output::json(&json!({ "running": {
            "id": id.as_str(), "backend": chosen.name(), "control_socket": socket.path(), "memory_pages": pages,
        }})),
        Format::Text => output::line(&format!(
            "guest `{id}` runs on {} with {}{} and payload {}; move it with `ferry migrate {id} --to ADDR`",
            chosen.name(),
            HumanBytes(config.memory_bytes),
            pages.map(|pages| format!(" in {pages} pages")).unwrap_or_default(),
            config.payload.name(),
        )),
    }
    attach(&args.serial, &shared);
    let end = serve(&shared, &wanted, &mut builder, None)?;
    say_end(&end, id.as_str(), format);
    Ok(0)
}

/// The kernel that the guest boots, with paths that hold wherever the program is.
fn linux(args: &KernelArgs) -> Result<Option<Linux>, CliError> {
    let Some(kernel) = &args.kernel else { return Ok(None) };
    Ok(Some(Linux {
        kernel: absolute(kernel)?,
        initramfs: args.initramfs.as_deref().map(absolute).transpose()?,
        command_line: args.cmdline.clone(),
    }))
}

/// Writes the birth down; of two that want one name at once the second is refused.
fn be_born(
    folder: Option<&StateFolder>,
    journal: &dyn Journal,
    id: &GuestId,
    unheard: bool,
) -> Result<Epoch, CliError> {
    let failed = |error: JournalError| CliError::of(&error);
    let hold = folder.map(StateFolder::hold_births).transpose().map_err(failed)?;
    let epoch = folder.map_or(Ok(Epoch::BIRTH), |folder| birth(folder, id, unheard))?;
    journal.write(&Record::Born(OfGuest { guest: id.clone(), epoch })).map_err(failed)?;
    drop(hold);
    Ok(epoch)
}

/// The program in a file; one byte more than is taken is read, so that a longer file is told.
fn image(path: &Path, memory_bytes: u64) -> Result<Image, CliError> {
    let refused = |error: &dyn Display| CliError::plain(format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_IMAGE_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| refused(&error))?;
    let image = Image::parse(&bytes).map_err(|error| refused(&error))?;
    image.check_fits(memory_bytes).map_err(|error| refused(&error))?;
    Ok(image)
}

/// A guest that could not be made; a host that cannot keep its contract refuses it.
fn unborn(error: &VmmError) -> CliError {
    let mut said = CliError::of(error);
    said.findings = error.findings();
    if !said.findings.is_empty() {
        said.kind = Kind::Refused;
    }
    said
}

/// Takes the guest's locks for its whole life, whichever host it lives on: those of its disks, and these.
fn take_locks(guest: &mut AnyGuest, id: &GuestId, files: &[PathBuf]) -> Result<(), CliError> {
    let files = files.iter().map(|path| FileLock::prepare(path)).collect::<Result<Vec<_>, _>>();
    let images = guest.disk_images().into_iter().map(|image| image.resource());
    let locks = Resources { released: images.chain(files.map_err(|error| CliError::of(&error))?).collect() };
    guest.take_resources(id, &locks).map_err(|error| CliError::of(&error))
}

/// A name that no guest ever had.
fn name() -> Result<GuestId, CliError> {
    format!("guest-{:012x}", fresh_seed() >> 16).parse().map_err(|error| CliError::of(&error))
}

/// Whether a process has its guest, or had it and cannot know whether it still runs elsewhere.
fn is_guests(status: &Status) -> bool {
    status.custody || matches!(status.state, State::Migrating | State::Ambiguous)
}

/// Two guests of one name on one machine could not be told apart by `migrate` and `status`.
fn refuse_a_namesake(id: &GuestId) -> Result<(), CliError> {
    let known = client::all()?;
    let namesake =
        known.iter().find(|(_, status)| is_guests(status) && status.id.as_deref() == Some(id.as_str()));
    namesake.map_or(Ok(()), |(_, status)| {
        let pid = status.pid;
        Err(CliError::plain(format!(
            "a guest `{id}` runs here already, in process {pid}: choose another --id"
        )))
    })
}

/// Fills every page from this address on that is zero; what the payload put there stays.
fn fill_random(ram: &GuestRam, from: u64) -> Result<(), RamError> {
    let mut page = [0; 4096];
    let mut state = fresh_seed() | 1;
    for region in ram.layout().ranges() {
        let mut classified = Classified::new();
        ram.classify(region, &mut classified)?;
        for run in classified.zero_runs() {
            for number in run.first.max(from / PAGE_SIZE)..run.first + run.count {
                noise::fill(&mut page, &mut state);
                ram.write(number * PAGE_SIZE, &page)?;
            }
        }
    }
    Ok(())
}
