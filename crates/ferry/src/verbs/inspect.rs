//! `ferry inspect`: what is in a file (a profile, a contract or a guest), without a machine and without
//! taking anything from it.

use std::fmt::Write;
use std::path::Path;

use ferry_migrate::oneway::{Survey, survey};
use ferry_state::{Section, describe_known};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::check::show;
use crate::artefact::Artefact;
use crate::cli::{Format, InspectArgs};
use crate::error::CliError;
use crate::output;

/// The longest value of one field in text form, in characters; JSON holds all of it.
const MAX_SHOWN: usize = 160;

pub(crate) fn inspect(args: &InspectArgs, format: Format) -> Result<u8, CliError> {
    // A profile or a contract says what it is; whatever is neither may hold a guest.
    let neither = match Artefact::find(&args.file) {
        Ok((artefact, _)) => {
            show(&artefact, format);
            return Ok(0);
        }
        Err(error) if !args.file.exists() => return Err(error),
        Err(error) => error,
    };
    let path = args.file.display();
    let found =
        survey(&args.file).map_err(|error| CliError::plain(format!("{path} cannot be read: {error}")))?;
    if found.hello.is_none() {
        let why = found.damage.map_or_else(String::new, |damage| format!(": {damage}"));
        let message = neither.message;
        return Err(CliError::plain(format!(
            "{message}; nor can this build decode it as a guest's file{why}"
        )));
    }
    match format {
        Format::Json => output::json(&document(&found)),
        Format::Text => output::lines(&lines(&args.file, &found)),
    }
    Ok(0)
}

fn document(found: &Survey) -> Value {
    let sections: Vec<Value> = found.sections.iter().map(section_document).collect();
    json!({
        "kind": "guest",
        "guest": found.hello.as_ref().map(|hello| hello.guest.as_str()),
        "epoch": found.hello.as_ref().map(|hello| hello.epoch.0),
        "session": found.hello.as_ref().map(|hello| hello.session.to_string()),
        "program": found.hello.as_ref().map(|hello| hello.program.as_str()),
        "machine": found.offer.as_ref().map(|offer| json!({
            "kind": offer.machine.kind,
            "vcpus": offer.machine.vcpus,
            "memory_bytes": offer.machine.memory_bytes(),
            "regions": offer.machine.regions.iter().map(|region| json!({
                "start": format!("{:#x}", region.start), "length_bytes": region.length,
            })).collect::<Vec<_>>(),
            "disks": offer.machine.disks.iter().map(|disk| json!({
                "disk": disk.disk, "bytes": disk.bytes, "allocated_bytes": disk.allocated_bytes,
            })).collect::<Vec<_>>(),
        })),
        "rounds": found.rounds,
        "data_pages": found.data_pages,
        "zero_pages": found.zero_pages,
        "memory_hash": found.memory_hash.map(|hash| hex(&hash)),
        "sections": sections,
        "complete": found.damage.is_none(),
        "custody": custody(found),
        "taken": found.taken.as_ref().map(|taken| json!({
            "host": taken.host, "pid": taken.pid, "unix_seconds": taken.unix_seconds,
        })),
        "damage": found.damage.as_ref().map(|damage| json!({ "offset": damage.offset, "what": damage.what })),
        "file_bytes": found.file_bytes,
    })
}

/// `present`, `taken` or `absent`.
fn custody(found: &Survey) -> &'static str {
    match (&found.custody, &found.taken) {
        (Some(_), Some(_)) => "taken",
        (Some(_), None) => "present",
        (None, _) => "absent",
    }
}

fn section_document(section: &Section) -> Value {
    let mut document = json!({
        "name": section.name, "index": section.index, "needed": section.needed, "body_bytes": section.body.len(),
    });
    match describe_known(section) {
        Ok(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, Value::String(value)));
            document["fields"] = fields.collect::<serde_json::Map<_, _>>().into();
        }
        Err(error) => document["undecoded"] = error.to_string().into(),
    }
    document
}

fn lines(path: &Path, found: &Survey) -> Vec<String> {
    let mut lines = vec![format!("file        {}, {}", path.display(), HumanBytes(found.file_bytes))];
    if let Some(hello) = &found.hello {
        lines.push(format!(
            "guest       {}, epoch {}, written by {}",
            hello.guest, hello.epoch, hello.program
        ));
    }
    if let Some(offer) = &found.offer {
        let machine = &offer.machine;
        let memory = HumanBytes(machine.memory_bytes());
        lines.push(format!("machine     {}, {} vCPUs, {memory}", machine.kind, machine.vcpus));
        for disk in &machine.disks {
            let (bytes, held) = (HumanBytes(disk.bytes), HumanBytes(disk.allocated_bytes));
            lines.push(format!("disk        {} of {bytes}, which took up {held}", disk.disk));
        }
    }
    let (data, zeros) = (found.data_pages.saturating_mul(4096), found.zero_pages.saturating_mul(4096));
    let (data, zeros) = (HumanBytes(data), HumanBytes(zeros));
    lines.push(format!("memory      {data} of data and {zeros} of zeros in {} rounds", found.rounds));
    if let Some(hash) = &found.memory_hash {
        lines.push(format!("hash        {}", hex(hash)));
    }
    lines.push(match (&found.custody, &found.taken) {
        (Some(_), Some(taken)) => format!(
            "custody     taken by process {} on host `{}`, {} s after 1970",
            taken.pid, taken.host, taken.unix_seconds
        ),
        (Some(_), None) => "custody     here: `ferry receive --from file:PATH` takes the guest".into(),
        (None, _) => "custody     not here: no guest can be taken from this file".into(),
    });
    if let Some(damage) = &found.damage {
        lines.push(format!("damage      {damage}"));
    }
    for section in &found.sections {
        lines.push(format!("section     {} {}", section.name, section.index));
        match describe_known(section) {
            Ok(fields) => lines.extend(fields.iter().map(|(name, value)| {
                let shown: String = value.chars().take(MAX_SHOWN).collect();
                let cut = if shown.len() < value.len() { " …" } else { "" };
                format!("  {name:<24}{shown}{cut}")
            })),
            Err(_) => lines.push(format!(
                "  {} bytes that this build does not decode; the machine that restores them does",
                section.body.len()
            )),
        }
    }
    lines
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
