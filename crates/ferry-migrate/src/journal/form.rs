//! The form of a journal's file: a header, then records, each with its length and a checksum.
//!
//! The header is written before the file gets its name, and whole. A record is appended by one write;
//! a process or host that dies in it leaves a torn tail, which holds nothing that anybody acted on:
//! whoever acts waits until the record is on disk. Anything else that cannot be read is damage, and
//! then what the file does not say is not known.
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0 | 8 | `FERRYJNL` |
//! | 8 | 4 | version of the form, little-endian as all numbers here |
//! | 12 | 8 | instance |
//! | 20 | 4 | CRC32C of the 20 bytes before |
//!
//! A record: its length (4 bytes), the CRC32C of length and body (4 bytes), the body.

use ferry_protocol::InstanceId;
use ferry_protocol::journal::Record;

/// The first bytes of a journal.
const MAGIC: &[u8; 8] = b"FERRYJNL";

/// The form that this build writes. It reads the first as well, which lacks some records.
const VERSION: u32 = 2;

/// The bytes of the header.
pub(super) const HEADER_BYTES: usize = 24;

/// The bytes before a record's body.
const HEAD_BYTES: usize = 8;

/// The longest body of a record, in bytes.
const MAX_RECORD_BYTES: usize = 8 << 10;

/// The longest journal, in bytes: about a hundred thousand sessions of one process.
pub const MAX_JOURNAL_BYTES: u64 = 16 << 20;

/// How much of a journal could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// All of it.
    Whole,
    /// All but its last bytes, which nobody acted on: their write never came to its end.
    Torn,
    /// Some records in its middle, or all from there on, cannot be read.
    Damaged {
        /// The first byte that cannot be read.
        offset: u64,
    },
    /// Another build wrote it, in a form that this one does not know.
    OtherVersion(u32),
    /// It does not begin as a journal does.
    Foreign,
    /// The system does not let it be read.
    Unreadable,
}

/// A journal's content, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The process that wrote it, as the file says.
    pub instance: Option<InstanceId>,
    /// Its records, in the order of writing.
    pub records: Vec<Record>,
    /// How much of it could be read.
    pub condition: Condition,
}

impl Content {
    /// Reads a journal. It never fails: what cannot be read is told by the condition.
    pub fn parse(bytes: &[u8]) -> Self {
        let nothing = |condition| Self { instance: None, records: Vec::new(), condition };
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return nothing(Condition::Foreign);
        };
        match parse_header(header) {
            Ok(instance) => Self { instance: Some(instance), ..parse_records(body) },
            Err(condition) => nothing(condition),
        }
    }

    /// The file of such a journal, as a process writes it; records that are too long are left out.
    pub fn encode(instance: InstanceId, records: &[Record]) -> Vec<u8> {
        let frames = records.iter().filter_map(frame).flatten();
        header(instance).into_iter().chain(frames).collect()
    }

    /// Whether something may have been in it that is not in `records`.
    pub fn is_whole(&self) -> bool {
        matches!(self.condition, Condition::Whole | Condition::Torn)
    }
}

/// A journal's first bytes.
pub(super) fn header(instance: InstanceId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = MAGIC.iter().copied().chain(VERSION.to_le_bytes()).chain(instance.0.to_le_bytes());
    header.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    let sum = crc32c::crc32c(&header[..HEADER_BYTES - 4]).to_le_bytes();
    header[HEADER_BYTES - 4..].copy_from_slice(&sum);
    header
}

fn parse_header(header: &[u8; HEADER_BYTES]) -> Result<InstanceId, Condition> {
    let number =
        |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let instance = header.get(12..20).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    if !header.starts_with(MAGIC) {
        return Err(Condition::Foreign);
    }
    // Another version may place its checksum elsewhere, so the version comes first.
    match (number(8), instance, number(20)) {
        (Some(version), _, _) if !(1..=VERSION).contains(&version) => Err(Condition::OtherVersion(version)),
        (_, Some(instance), Some(sum)) if sum == crc32c::crc32c(&header[..HEADER_BYTES - 4]) => {
            Ok(InstanceId(instance))
        }
        _ => Err(Condition::Damaged { offset: 0 }),
    }
}

/// A record as it is appended; none if it is longer than any record may be.
pub(super) fn frame(record: &Record) -> Option<Vec<u8>> {
    if !record.is_bounded() {
        return None; // a reader would take it for damage
    }
    let body = minicbor::to_vec(record).unwrap_or_default();
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_RECORD_BYTES)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(sum(&frame, &body).to_le_bytes());
    frame.extend(body);
    Some(frame)
}

fn sum(length: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(length), body)
}

/// The record at the beginning of these bytes, and its own bytes.
fn parse_frame(bytes: &[u8]) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let bytes =
        usize::try_from(u32::from_le_bytes(*length)).ok().filter(|&bytes| bytes <= MAX_RECORD_BYTES)?;
    let body = rest.get(..bytes)?;
    let is_whole = sum(length, body) == u32::from_le_bytes(*expected);
    let record = is_whole.then(|| parse_record(body)).flatten()?;
    Some((record, HEAD_BYTES + bytes))
}

/// A record that is not understood to its last byte counts as damage.
fn parse_record(body: &[u8]) -> Option<Record> {
    let mut decoder = minicbor::Decoder::new(body);
    let record: Record = decoder.decode().ok()?;
    (decoder.position() == body.len() && record.is_bounded()).then_some(record)
}

fn parse_records(body: &[u8]) -> Content {
    let mut content = Content { instance: None, records: Vec::new(), condition: Condition::Whole };
    let mut at = 0;
    while let Some(rest) = body.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some((record, bytes)) = parse_frame(rest) {
            content.records.push(record);
            at += bytes;
            continue;
        }
        let is_first = content.condition == Condition::Whole;
        // A record that can be read again after this means that the gap is no torn tail.
        let next = Some(()).filter(|()| is_first).and_then(|()| next_frame(rest));
        if is_first {
            content.condition = if next.is_none() && is_torn(rest) { Condition::Torn } else { damaged(at) };
        }
        let Some(skip) = next else { return content };
        at += skip;
    }
    content
}

/// How far it is to the next record that can be read, if there is one within the length of two.
fn next_frame(bytes: &[u8]) -> Option<usize> {
    let reach = bytes.len().min(2 * (HEAD_BYTES + MAX_RECORD_BYTES));
    (1..reach).find(|&skip| bytes.get(skip..).is_some_and(|rest| parse_frame(rest).is_some()))
}

fn damaged(at: usize) -> Condition {
    let offset = at.saturating_add(HEADER_BYTES);
    Condition::Damaged { offset: u64::try_from(offset).unwrap_or(u64::MAX) }
}

/// Whether these last bytes can be what a write left that did not come to its end: less than a record,
/// or bytes that the file system provided and never filled.
fn is_torn(tail: &[u8]) -> bool {
    const UNFILLED: [u8; 8] = [0; 8];
    let claimed =
        tail.first_chunk::<4>().and_then(|length| usize::try_from(u32::from_le_bytes(*length)).ok());
    match claimed {
        _ if tail.iter().all(|&byte| byte == 0) => true,
        None => true,
        Some(bytes) if bytes > MAX_RECORD_BYTES => false,
        Some(bytes) => tail.len() < HEAD_BYTES + bytes || tail.ends_with(&UNFILLED),
    }
}

#[cfg(test)]
mod tests {
    use ferry_protocol::Epoch;
    use ferry_protocol::journal::OfGuest;

    use super::*;

    fn record(epoch: u64) -> Record {
        Record::Refused(OfGuest { guest: "web-1".parse().unwrap(), epoch: Epoch(epoch) })
    }

    fn journal(epochs: std::ops::Range<u64>) -> Vec<u8> {
        let mut bytes = header(InstanceId(7)).to_vec();
        epochs.for_each(|epoch| bytes.extend(frame(&record(epoch)).unwrap()));
        bytes
    }

    fn epochs(content: &Content) -> Vec<u64> {
        content.records.iter().map(|record| record.epoch().0).collect()
    }

    #[test]
    fn a_journal_comes_back_as_it_was_written() {
        let content = Content::parse(&journal(2..5));
        assert_eq!((content.instance, content.condition), (Some(InstanceId(7)), Condition::Whole));
        assert_eq!(epochs(&content), [2, 3, 4]);
        assert_eq!(Content::parse(&journal(0..0)).condition, Condition::Whole);
    }

    #[test]
    fn a_tail_cut_anywhere_loses_the_last_record_alone() {
        let (two, three) = (journal(2..4).len(), journal(2..5));
        for length in two..three.len() {
            let content = Content::parse(&three[..length]);
            let condition = if length == two { Condition::Whole } else { Condition::Torn };
            assert_eq!((epochs(&content), content.condition), (vec![2, 3], condition), "{length}");
            // A file system that provided the bytes and never filled them.
            let mut zeros = three[..length].to_vec();
            zeros.resize(three.len() + 100, 0);
            let content = Content::parse(&zeros);
            assert_eq!((epochs(&content), content.condition), (vec![2, 3], Condition::Torn), "{length}");
        }
    }

    #[test]
    fn a_byte_that_changed_is_never_taken_for_a_torn_tail_before_the_last_record() {
        let (whole, last) = (journal(2..6), journal(2..5).len());
        for at in HEADER_BYTES..last {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            let content = Content::parse(&bytes);
            let found = epochs(&content);
            assert!(matches!(content.condition, Condition::Damaged { .. }), "{at}: {content:?}");
            assert!(found.len() == 3 && found.ends_with(&[5]), "{at}: {found:?}");
        }
        let mut bytes = whole;
        let body = bytes.len() - 3;
        bytes[body] ^= 0x40;
        let content = Content::parse(&bytes);
        assert_eq!(content.condition, Condition::Damaged { offset: last as u64 }, "it was all there");
    }

    #[test]
    fn what_is_no_journal_of_this_form_is_said_so() {
        let good = journal(2..3);
        let parse = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Content::parse(&bytes)
        };
        assert_eq!(parse(0, b'x').condition, Condition::Foreign);
        for version in [0, 3] {
            assert_eq!(parse(8, version).condition, Condition::OtherVersion(version.into()));
        }
        assert_eq!(parse(12, 9).condition, Condition::Damaged { offset: 0 });
        assert_eq!(Content::parse(&good[..HEADER_BYTES - 1]).condition, Condition::Foreign);
        assert!(parse(8, 3).records.is_empty() && !parse(8, 3).is_whole());
        let mut first = good.clone();
        first[8] = 1;
        let sum = crc32c::crc32c(&first[..HEADER_BYTES - 4]).to_le_bytes();
        first[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&sum);
        assert_eq!(epochs(&Content::parse(&first)), [2], "the first form is read as well");
    }

    #[test]
    fn a_record_that_this_build_does_not_know_is_damage() {
        let mut bytes = journal(2..3);
        let body = [0x82, 0x18, 99, 0xa0];
        let mut frame = 4_u32.to_le_bytes().to_vec();
        frame.extend(sum(&4_u32.to_le_bytes(), &body).to_le_bytes());
        frame.extend(body);
        bytes.extend(frame);
        let content = Content::parse(&bytes);
        assert!(matches!(content.condition, Condition::Damaged { .. }) && epochs(&content) == [2]);
    }
}
