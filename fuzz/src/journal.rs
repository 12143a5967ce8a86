//! The body of journals: files that another life of a process wrote, whole, torn or damaged.

use ferry_migrate::journal::{Condition, Content};
use ferry_protocol::journal::{History, Living, PastAnswer, Record};

/// A journal. What is read survives being written and read again; what is damaged has run whatever it is
/// asked about; of a process that lives only what it wrote outright is said; and a cut never makes a record
/// appear.
pub fn journal(bytes: &[u8]) {
    let content = Content::parse(bytes);
    let mut history = History::of(&content.records);
    if !content.is_whole() {
        history = history.with_a_part_missing();
    }
    let living = Living::of(&content.records);
    for record in &content.records {
        let answer = history.answer(record.guest(), record.epoch());
        assert!(content.is_whole() || answer == PastAnswer::MayHaveRun, "{record:?}");
        let is_refusal = |other: &Record| matches!(other, Record::Refused(of) if (&of.guest, of.epoch) == (record.guest(), record.epoch()));
        let is_refused = content.records.iter().any(is_refusal);
        let said = living.answer(record.guest(), record.epoch());
        assert_eq!(said == PastAnswer::NeverRan, is_refused, "{record:?}");
        assert!(said != PastAnswer::MayHaveRun, "it lives: {record:?}");
    }
    if let Some(instance) = content.instance {
        let again = Content::parse(&Content::encode(instance, &content.records));
        assert_eq!((again.condition, &again.records), (Condition::Whole, &content.records));
    }
    let half = Content::parse(&bytes[..bytes.len() / 2]);
    if content.is_whole() {
        assert!(half.records.len() <= content.records.len());
    }
}
