//! `ferry receive`: waits for a guest, then runs it as `ferry run` would.

use std::fs::File;
use std::sync::Arc;

use crossbeam_channel::bounded;
use ferry_migrate::journal::StateFolder;
use ferry_migrate::oneway::{Direction, FileCopy, Origin, Place, Stream, TakeError, TakeOptions, take};
use ferry_migrate::{Address, Listener, ReceiveOptions, Reception, RunWatch};
use ferry_protocol::{Epoch, GuestId};
use ferry_vmm::{AnyBuilder, Chosen, Places};
use indicatif::HumanBytes;
use serde_json::json;

use super::migrate::adopt;
use super::{attach, birth, choose, keep, say_end, serial_output, watch};
use crate::cli::{Format, ReceiveArgs};
use crate::control::host::{Shared, serve};
use crate::control::observer::ArrivalObserver;
use crate::control::server;
use crate::error::{CliError, Kind};
use crate::form::ArrivalForm;
use crate::output;

pub(crate) fn receive(args: &ReceiveArgs, format: Format) -> Result<u8, CliError> {
    match (&args.listen, &args.from) {
        (_, Some(place)) => read(args, place, format),
        (Some(address), None) => wait(args, address, format),
        (None, None) => Err(CliError::usage("say --listen ADDR, --from file:PATH or --from fd:N")),
    }
}

/// Takes a guest from a file or a descriptor.
fn read(args: &ReceiveArgs, place: &Place, format: Format) -> Result<u8, CliError> {
    let origin = origin(place)?;
    let (folder, journal) = keep(&args.state, &args.test)?;
    let watch = watch(&args.test)?;
    let chosen = choose(args.backend)?;
    let serial = serial_output(&args.serial, &chosen, format)?;
    let mut builder = builder(args, &chosen, watch, serial)?;
    let (jobs, wanted) = bounded(8);
    let shared = Shared::new(args.id.clone(), chosen.name(), jobs, Arc::clone(&journal), args.test.clone());
    let name = args.id.as_ref().map_or("receive", |id| id.as_str());
    let socket = server::serve(&shared, name)?;
    let expected = args.id.clone().filter(|_| !args.clone);
    let copy =
        args.id.clone().filter(|_| args.clone).map(|guest| copy(folder.as_ref(), guest)).transpose()?;
    let options = TakeOptions { journal, expected, copy, timeouts: args.test.timeouts() };
    let observer = ArrivalObserver { shared: &shared };
    let arrived = take(origin, options, &mut builder, &observer).map_err(|error| error_of(&error))?;
    shared.adopt(arrived.machine, &arrived.guest, arrived.epoch);
    let figures = ArrivalForm::new(&arrived.arrival);
    shared.arrived(figures.clone());
    say_arrived(format, arrived.guest.as_str(), arrived.epoch.0, &figures, socket.path());
    attach(&args.serial, &shared);
    let end = serve(&shared, &wanted, &mut builder, arrived.answering)?;
    say_end(&end, arrived.guest.as_str(), format);
    Ok(0)
}

/// What builds the guest's machine here.
fn builder(
    args: &ReceiveArgs,
    chosen: &Chosen,
    watch: Option<Arc<dyn RunWatch>>,
    serial: Vec<Arc<File>>,
) -> Result<AnyBuilder, CliError> {
    let builder = super::builder(chosen, watch, args.huge_pages, args.dirty.kind, serial)?;
    // Who comes over a link runs until it is here; a guest in a file or a descriptor may have let go of its images.
    let places = Places { runs_elsewhere: args.listen.is_some(), ..args.places.places()? };
    let builder = builder.with_places(places).map_err(|error| CliError::of(&error))?;
    Ok(builder.with_guest_time(args.guest_time).overwriting_disks(args.places.overwrite_disks))
}

/// The copy of a guest is born: no other of its name may be here.
fn copy(folder: Option<&StateFolder>, guest: GuestId) -> Result<FileCopy, CliError> {
    let epoch = folder.map_or(Ok(Epoch::BIRTH), |folder| birth(folder, &guest, false))?;
    Ok(FileCopy { guest, epoch })
}

fn origin(place: &Place) -> Result<Origin, CliError> {
    match place {
        Place::File(path) => Ok(Origin::File(path.clone())),
        Place::Descriptor(number) => {
            let stream = Stream::new(adopt(*number)?, Direction::In)
                .map_err(|error| CliError::usage(CliError::of(&error).message))?;
            Ok(Origin::Stream(stream, place.to_string()))
        }
        Place::Link(_) => Err(CliError::usage("to wait on an address use --listen")),
    }
}

fn error_of(error: &TakeError) -> CliError {
    let CliError { message, .. } = CliError::of(error);
    match error {
        TakeError::Refused(_, verdict) => {
            CliError { kind: Kind::Refused, message, findings: verdict.findings.clone() }
        }
        TakeError::Incompatible(_) => CliError::new(Kind::Refused, message),
        TakeError::Lost(_) => CliError::new(Kind::Ambiguous, message),
        TakeError::CloneOfStream => CliError::usage(message),
        _ => CliError::plain(message),
    }
}

/// Waits on an address.
fn wait(args: &ReceiveArgs, listen: &Address, format: Format) -> Result<u8, CliError> {
    let watch = watch(&args.test)?;
    let chosen = choose(args.backend)?;
    let serial = serial_output(&args.serial, &chosen, format)?;
    let mut builder = builder(args, &chosen, watch, serial)?;
    let listener = Listener::bind(listen, args.insecure).map_err(|error| CliError::of(&error))?;
    let address = listener.address().to_string();
    let (_, journal) = keep(&args.state, &args.test)?;
    // The journals of earlier processes are read here, before any source can wait for that.
    let options = ReceiveOptions {
        journal: Arc::clone(&journal),
        witness: None,
        expected: args.id.clone(),
        timeouts: args.test.timeouts(),
    };
    let reception = Reception::new(listener, options).map_err(|error| CliError::of(&error))?;
    let (jobs, wanted) = bounded(8);
    let shared = Shared::new(args.id.clone(), chosen.name(), jobs, journal, args.test.clone());
    shared.listens(address.clone());
    let name = args.id.as_ref().map_or("receive", |id| id.as_str());
    let socket = server::serve(&shared, name)?;
    say_waiting(format, &address, &chosen, socket.path());
    let arrived = reception
        .wait(&mut builder, &ArrivalObserver { shared: &shared })
        .map_err(|error| CliError::of(&error))?;
    shared.adopt(arrived.machine, &arrived.guest, arrived.epoch);
    let figures = ArrivalForm::new(&arrived.arrival);
    shared.arrived(figures.clone());
    say_arrived(format, arrived.guest.as_str(), arrived.epoch.0, &figures, socket.path());
    attach(&args.serial, &shared);
    let end = serve(&shared, &wanted, &mut builder, arrived.answering)?;
    say_end(&end, arrived.guest.as_str(), format);
    Ok(0)
}

fn say_waiting(format: Format, address: &str, chosen: &Chosen, socket: &std::path::Path) {
    match format {
        Format::Json => output::json(&json!({ "waiting": {
            "listen": address, "backend": chosen.name(), "control_socket": socket,
        }})),
        Format::Text => output::line(&format!(
            "waiting for a guest on {address} ({}); send one with `ferry migrate ID --to {address}`",
            chosen.name()
        )),
    }
}

fn say_arrived(format: Format, guest: &str, epoch: u64, arrival: &ArrivalForm, socket: &std::path::Path) {
    match format {
        Format::Json => output::json(&json!({ "arrived": {
            "id": guest, "epoch": epoch, "control_socket": socket, "figures": arrival,
        }})),
        Format::Text => output::line(&format!(
            "guest `{guest}` arrived and runs here under epoch {epoch}: {} of data and {} of zeros in {} rounds",
            HumanBytes(arrival.data_bytes),
            HumanBytes(arrival.zero_bytes),
            arrival.rounds
        )),
    }
}
