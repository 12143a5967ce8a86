//! The body of journals: files that another life of a process wrote, whole, torn or damaged.

use ferry_migrate::journal::{Condition, Content};
use ferry_protocol::journal::{History, PastAnswer};

/// A journal. What is read survives being written and read again; what is damaged has run whatever it is
/// asked about; and a cut never makes a record appear.
pub fn journal(bytes: &[u8]) {
    let content = Content::parse(bytes);
    let mut history = History::of(&content.records);
    if !content.is_whole() {
        history = history.with_a_part_missing();
    }
    for record in &content.records {
        let answer = history.answer(record.guest(), record.epoch());
        assert!(content.is_whole() || answer == PastAnswer::MayHaveRun, "{record:?}");
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
