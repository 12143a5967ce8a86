//! The wire form of today, kept in `tests/golden/`: a change that a released build could not read
//! fails here. `FERRY_BLESS=1 cargo test -p ferry-state --test wire` writes the files anew.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use ferry_state::{MACHINE_SECTIONS, MachineState, Section, arm64, decode_known, x86};

use crate::parts;

/// A section as people read it: the body in CBOR's diagnostic notation as comment, then the whole
/// section in hexadecimal.
fn as_text(section: &Section) -> String {
    let mut text = format!("# {} index {} needed {:?}\n", section.name, section.index, section.needed);
    let mut diagnostic = String::new();
    diagnose(&mut minicbor::Decoder::new(&section.body), &mut diagnostic);
    for line in wrapped(&diagnostic, 100) {
        writeln!(text, "# {line}").unwrap();
    }
    for line in section.to_bytes().chunks(32) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{}", hex.join(" ")).unwrap();
    }
    text
}

/// One CBOR item in diagnostic notation; the parts have maps, arrays, bytes, texts, numbers and booleans.
fn diagnose(decoder: &mut minicbor::Decoder<'_>, text: &mut String) {
    use minicbor::data::Type;
    match decoder.datatype().unwrap() {
        Type::Map => {
            text.push('{');
            for i in 0..decoder.map().unwrap().unwrap() {
                text.push_str(if i == 0 { "" } else { ", " });
                diagnose(decoder, text);
                text.push_str(": ");
                diagnose(decoder, text);
            }
            text.push('}');
        }
        Type::Array => {
            text.push('[');
            for i in 0..decoder.array().unwrap().unwrap() {
                text.push_str(if i == 0 { "" } else { ", " });
                diagnose(decoder, text);
            }
            text.push(']');
        }
        Type::Bytes => write!(text, "h'({} bytes)'", decoder.bytes().unwrap().len()).unwrap(),
        Type::String => write!(text, "{:?}", decoder.str().unwrap()).unwrap(),
        Type::Bool => write!(text, "{}", decoder.bool().unwrap()).unwrap(),
        _ => write!(text, "{:#x}", decoder.u64().unwrap()).unwrap(),
    }
}

/// Breaks a long line after commas.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split_inclusive(", ") {
        if lines.last().unwrap().len() + word.len() > width {
            lines.push(String::new());
        }
        lines.last_mut().unwrap().push_str(word);
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits = text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn file_of(section: &Section) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    folder.join(format!("{}.txt", section.name.replace('/', ".")))
}

fn known() -> Vec<&'static str> {
    [x86::KNOWN_SECTIONS, arm64::KNOWN_SECTIONS, MACHINE_SECTIONS].concat()
}

#[test]
fn every_part_keeps_its_wire_form() {
    // Blessing and the look at the folder are one test, because tests run side by side.
    let bless = std::env::var_os("FERRY_BLESS").is_some();
    for section in parts::all() {
        let file = file_of(&section);
        if bless {
            fs::write(&file, as_text(&section)).unwrap();
        }
        let golden = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(golden, as_text(&section), "the wire form of {} changed", section.name);
        assert_eq!(Section::from_bytes(&bytes_of(&golden)).unwrap(), section);
    }

    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".txt").to_owned())
        .collect();
    files.sort();
    let mut names: Vec<String> = known().iter().map(|name| name.replace('/', ".")).collect();
    names.sort();
    assert_eq!(files, names, "a golden file without its part, or a part without its file");
}

#[test]
fn every_part_is_known() {
    let sections = parts::all();
    let names: Vec<&str> = sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(names, known());
    for section in &sections {
        decode_known(section).unwrap();
    }
    MachineState::from_sections(sections.clone()).unwrap().refuse_unknown(&known()).unwrap();
}

/// The field numbers in the table under a part's heading.
fn documented_fields(document: &str, name: &str) -> Vec<u32> {
    let heading = format!("### `{name}`\n");
    let (_, rest) = document.split_once(&heading).unwrap_or_else(|| panic!("{name} is not documented"));
    let end = rest.find("\n#").unwrap_or(rest.len());
    let rows =
        rest[..end].lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    rows.collect()
}

#[test]
fn every_field_is_documented() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/state-format.md");
    let document = fs::read_to_string(file).unwrap();
    for section in parts::all() {
        let written = if parts::is_table(&section.name) { vec![] } else { section.needed };
        assert_eq!(documented_fields(&document, &section.name), written, "{}", section.name);
    }
}
