//! Today's forms, byte for byte, in `tests/golden`. A file that differs means that peers of another
//! build may not understand this one: change the protocol's version, or the code back.
//! `FERRY_BLESS=1` writes the files anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use ferry_protocol::frame::{FrameKind, PageHead, WireRange, encode};
use ferry_protocol::message::Message;

use super::values::{to_source, to_target};

/// Bytes in a line of a golden file.
const LINE: usize = 32;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(LINE).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
        text
    })
}

fn head(round: u32, checksum: Option<u32>) -> Vec<u8> {
    let ranges = vec![WireRange { first: 0, count: 2 }, WireRange { first: 0x10_0000, count: 510 }];
    PageHead { round, checksum, ranges }.to_bytes()
}

fn forms() -> Vec<(String, Vec<u8>)> {
    let targets = to_target();
    let sources = to_source();
    let targets = targets.iter().map(|m| (format!("to_target-{}", m.name()), m.to_bytes()));
    let sources = sources.iter().map(|m| (format!("to_source-{}", m.name()), m.to_bytes()));
    let kinds = [
        ("to_target", FrameKind::ToTarget),
        ("to_source", FrameKind::ToSource),
        ("section", FrameKind::Section),
        ("pages", FrameKind::Pages),
        ("zeros", FrameKind::Zeros),
    ];
    let frames = kinds.map(|(name, kind)| (format!("frame-{name}"), encode(kind, b"head")));
    let heads = [
        ("page_head-pages-live", head(0, None)),
        ("page_head-pages-last", head(3, Some(0x1234_5678))),
        ("page_head-zeros", head(1, None)),
    ];
    let heads = heads.map(|(name, bytes)| (name.to_owned(), bytes));
    targets.chain(sources).chain(frames).chain(heads).collect()
}

#[test]
fn todays_forms_are_those_of_the_golden_files() {
    let bless = std::env::var_os("FERRY_BLESS").is_some();
    let mut names = BTreeSet::new();
    for (name, bytes) in forms() {
        let file = format!("{name}.hex");
        let path = folder().join(&file);
        if bless {
            std::fs::write(&path, hex(&bytes)).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(hex(&bytes), golden, "{file} (left: today's form, right: the file)");
        assert!(names.insert(file), "two forms named {name}");
    }
    let there = std::fs::read_dir(folder()).unwrap();
    let there: BTreeSet<_> = there.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, names, "a golden file of no form, or a form without one");
}
