//! A host's disk: the journals of its processes, one a process's life.
//!
//! A record that was synced lasts. What was written without a sync outlives the process, and is lost
//! when the host loses power; of a record whose sync is under way then, a part may be there: a torn
//! tail, which reading ignores. A write that fails leaves nothing behind, or all of it, and nobody
//! knows which.

use std::collections::BTreeMap;

use ferry_protocol::journal::{History, Past, Record};
use ferry_protocol::{InstanceId, Time};

/// One journal.
#[derive(Debug, Default)]
struct Journal {
    records: Vec<Record>,
    /// So many of them outlast a loss of power.
    synced: usize,
    /// A record in its middle cannot be read any more.
    damaged: bool,
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    journals: BTreeMap<u64, Journal>,
    /// Until when writes fail, and whether what failed is on the disk all the same.
    fails: (Time, bool),
    /// Until when writes take that many microseconds longer.
    slow: (Time, u64),
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { journals: BTreeMap::new(), fails: (Time::ZERO, false), slow: (Time::ZERO, 0) }
    }

    /// Writes fail for a while.
    pub(crate) fn fail(&mut self, until: Time, written: bool) {
        self.fails = (until, written);
    }

    /// Writes are slow for a while.
    pub(crate) fn slow_down(&mut self, until: Time, by_us: u64) {
        self.slow = (until, by_us);
    }

    pub(crate) fn delay(&self, now: Time) -> u64 {
        if now < self.slow.0 { self.slow.1 } else { 0 }
    }

    /// Writes a record and makes it and all before it last.
    pub(crate) fn write(&mut self, now: Time, instance: InstanceId, record: Record) -> Result<(), String> {
        let journal = self.journals.entry(instance.0).or_default();
        if now < self.fails.0 {
            if self.fails.1 {
                journal.records.push(record);
            }
            return Err("the disk does not take the record".into());
        }
        journal.records.push(record);
        journal.synced = journal.records.len();
        Ok(())
    }

    /// Writes a note, which lasts when something later is synced.
    pub(crate) fn note(&mut self, now: Time, instance: InstanceId, record: Record) {
        if now >= self.fails.0 {
            self.journals.entry(instance.0).or_default().records.push(record);
        }
    }

    /// The host loses power while a record may be under way.
    pub(crate) fn lose_power(&mut self, under_way: Option<(InstanceId, Record)>) {
        for journal in self.journals.values_mut() {
            journal.records.truncate(journal.synced);
        }
        if let Some((instance, record)) = under_way {
            let journal = self.journals.entry(instance.0).or_default();
            journal.records.push(record);
            journal.synced = journal.records.len();
        }
    }

    /// A part of a journal cannot be read any more.
    pub(crate) fn damage(&mut self, instance: InstanceId) {
        let Some(journal) = self.journals.get_mut(&instance.0) else { return };
        journal.damaged = true;
        if let Some(middle) = journal.records.len().checked_sub(2) {
            journal.records.remove(middle);
            journal.synced = journal.synced.min(journal.records.len());
        }
    }

    /// What the journals of processes that are gone say.
    pub(crate) fn past(&self, is_gone: impl Fn(InstanceId) -> bool) -> Past {
        let mut past = Past::default();
        for (&number, journal) in self.journals.iter().filter(|&(&number, _)| is_gone(InstanceId(number))) {
            let history = History::of(&journal.records);
            let history = if journal.damaged { history.with_a_part_missing() } else { history };
            past.add(InstanceId(number), history);
        }
        past
    }
}

#[cfg(test)]
mod tests {
    use ferry_protocol::Epoch;
    use ferry_protocol::journal::OfGuest;

    use super::*;

    const LIFE: InstanceId = InstanceId(1);

    fn of(epoch: u64) -> OfGuest {
        OfGuest { guest: "g".parse().unwrap(), epoch: Epoch(epoch) }
    }

    fn floor(disk: &Disk) -> Option<Epoch> {
        disk.past(|_| true).floor(&of(1).guest)
    }

    #[test]
    fn a_note_outlives_its_process_but_not_its_hosts_power() {
        let mut disk = Disk::new();
        disk.write(Time::ZERO, LIFE, Record::Born(of(1))).unwrap();
        disk.note(Time::ZERO, LIFE, Record::Kept(of(2)));
        assert_eq!(floor(&disk), Some(Epoch(2)));
        disk.lose_power(None);
        assert_eq!(floor(&disk), Some(Epoch(1)));
        disk.lose_power(Some((LIFE, Record::Refused(of(4)))));
        assert_eq!(floor(&disk), Some(Epoch(4)), "what was under way may be there");
    }

    #[test]
    fn what_failed_may_be_there_all_the_same() {
        let mut disk = Disk::new();
        disk.fail(Time(10), false);
        assert!(disk.write(Time(9), LIFE, Record::Born(of(1))).is_err());
        assert_eq!(floor(&disk), None);
        disk.fail(Time(10), true);
        assert!(disk.write(Time(9), LIFE, Record::Born(of(1))).is_err());
        assert_eq!(floor(&disk), Some(Epoch(1)));
        assert!(disk.write(Time(10), LIFE, Record::Born(of(2))).is_ok());
    }

    #[test]
    fn a_damaged_journal_may_have_run_anything() {
        let mut disk = Disk::new();
        for epoch in 1..4 {
            disk.write(Time::ZERO, LIFE, Record::Refused(of(epoch))).unwrap();
        }
        disk.damage(LIFE);
        let past = disk.past(|_| true);
        assert!(past.life(LIFE).unwrap().is_partial());
        assert_eq!(disk.past(|_| false).lives().count(), 0, "it lives: nobody reads its journal");
    }
}
