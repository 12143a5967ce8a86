//! Journals as files: disks that fill, processes that are gone, folders that are cleaned up.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ferry_protocol::journal::{MayBeGiven, MayRun, OfGuest, PastAnswer, Record};
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{Epoch, GuestId, InstanceId, SessionId};

use super::file::{Medium, Writer};
use super::form::{frame, header};
use super::*;

fn guest() -> GuestId {
    "g".parse().unwrap()
}

fn of(epoch: u64) -> OfGuest {
    OfGuest { guest: guest(), epoch: Epoch(epoch) }
}

fn attempt(epoch: u64) -> OfEpoch {
    OfEpoch { session: SessionId(9), epoch: Epoch(epoch) }
}

fn may_run(epoch: u64) -> Record {
    Record::MayRun(MayRun { guest: guest(), of: attempt(epoch) })
}

fn may_be_given(epoch: u64) -> Record {
    let (to, address) = (Some(InstanceId(9)), "127.0.0.1:1".to_owned());
    Record::MayBeGiven(MayBeGiven { guest: guest(), of: attempt(epoch), to, address })
}

/// A disk on which a write breaks off after so many bytes, once.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    room: Option<usize>,
    sync_fails: bool,
    cut_fails: bool,
    synced: usize,
}

impl Medium for Disk {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        assert!(at <= self.bytes.len(), "a hole would be left");
        self.bytes.truncate(at);
        let fits = self.room.take().unwrap_or(bytes.len()).min(bytes.len());
        self.bytes.extend(&bytes[..fits]);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        if std::mem::take(&mut self.cut_fails) {
            return Err(io::Error::other("cut"));
        }
        self.bytes.truncate(usize::try_from(length).unwrap());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.sync_fails) {
            return Err(io::Error::other("sync"));
        }
        self.synced = self.bytes.len();
        Ok(())
    }
}

impl Medium for &mut Disk {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(bytes, offset)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        (**self).cut(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
}

fn empty_disk() -> Disk {
    Disk { bytes: header(InstanceId(7)).to_vec(), ..Disk::default() }
}

fn records(disk: &Disk) -> Vec<u64> {
    let content = Content::parse(&disk.bytes);
    assert_eq!(content.condition, Condition::Whole);
    content.records.iter().map(|record| record.epoch().0).collect()
}

#[test]
fn a_full_disk_leaves_whole_records_and_the_next_one_fits_again() {
    let length = frame(&may_run(3)).unwrap().len();
    for room in 0..length {
        let mut disk = empty_disk();
        let mut writer = Writer::after(&mut disk, 24);
        writer.append(&may_run(2), true).unwrap();
        writer.medium().room = Some(room);
        assert_eq!(writer.append(&may_run(3), true).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(records(writer.medium()), [2], "{room}");
        writer.append(&may_run(4), true).unwrap();
        assert_eq!(records(&disk), [2, 4]);
        assert_eq!(disk.synced, disk.bytes.len());
    }
}

#[test]
fn a_record_that_may_not_be_on_disk_is_taken_out_before_the_next_one() {
    let mut disk = empty_disk();
    let mut writer = Writer::after(&mut disk, 24);
    (writer.medium().sync_fails, writer.medium().cut_fails) = (true, true);
    writer.append(&may_run(2), true).unwrap_err();
    // Nor is anything written behind what could not be cut off.
    writer.medium().cut_fails = true;
    writer.append(&may_run(3), true).unwrap_err();
    writer.append(&may_run(4), true).unwrap();
    assert_eq!(records(&disk), [4]);
}

#[test]
fn a_journal_has_a_longest_length() {
    let mut disk = empty_disk();
    let mut writer = Writer::after(&mut disk, MAX_JOURNAL_BYTES - 4);
    let error = writer.append(&may_run(2), true).unwrap_err();
    assert!(error.to_string().contains("start another process"), "{error}");
    assert_eq!(disk.bytes.len(), 24, "nothing was touched");
}

fn folder() -> (tempfile::TempDir, StateFolder) {
    let outer = tempfile::tempdir().unwrap();
    let folder = StateFolder::open(&outer.path().join("a/b")).unwrap();
    (outer, folder)
}

#[test]
fn the_living_are_told_from_the_dead_by_the_lock() {
    let (_outer, folder) = folder();
    let journal = folder.begin(InstanceId(1)).unwrap();
    journal.write(&may_run(2)).unwrap();
    journal.note(&Record::Runs(of(2)));
    assert!(folder.lives().unwrap().iter().all(|life| life.alive));
    assert_eq!(folder.lives().unwrap().past().answer(InstanceId(1), &guest(), Epoch(2)), None);
    assert!(folder.lives().unwrap().living_with(&guest()).next().is_some());
    let held = File::open(journal.path()).unwrap();
    drop(journal);
    // A reader's own lock is not taken for the process's.
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared).unwrap();
    let lives = folder.lives().unwrap();
    assert!(lives.iter().all(|life| !life.alive && life.complaint().is_none()));
    assert_eq!(lives.past().answer(InstanceId(1), &guest(), Epoch(2)), Some(PastAnswer::MayHaveRun));
    assert_eq!(lives.past().answer(InstanceId(1), &guest(), Epoch(3)), Some(PastAnswer::NeverRan));
    assert!(lives.living_with(&guest()).next().is_none());
    assert_eq!(lives.highest(&guest()), Some(Epoch(2)));
}

#[test]
fn an_instance_has_one_journal() {
    let (_outer, folder) = folder();
    let journal = folder.begin(InstanceId(1)).unwrap();
    journal.write(&may_run(2)).unwrap();
    assert!(folder.begin(InstanceId(1)).is_err());
    assert_eq!(folder.lives().unwrap().iter().map(|life| life.content.records.len()).sum::<usize>(), 1);
    assert!(std::fs::read_dir(folder.path()).unwrap().count() == 1, "nothing unfinished is left");
}

#[test]
fn what_one_left_open_another_can_close() {
    let (_outer, folder) = folder();
    let write = |instance: u64, records: &[Record]| {
        let journal = folder.begin(InstanceId(instance)).unwrap();
        for record in records {
            journal.write(record).unwrap();
        }
    };
    let open = || -> Vec<_> {
        let open = folder.lives().unwrap().open(Some(&guest()));
        open.into_iter().map(|open| (open.instance.0, open.epoch.0)).collect()
    };
    write(1, &[may_be_given(2)]);
    write(2, &[may_run(3), Record::Refused(of(3)), may_run(4), Record::Runs(of(4))]);
    // The guest ran under 4, so what was given under 2 came to an end; but the source of 4 waits.
    assert_eq!(open(), [(2, 4)]);
    write(3, &[Record::Moved(of(4))]);
    assert_eq!(open(), []);
}

#[test]
fn damaged_journals_and_those_of_another_version_are_kept_and_trusted_in_nothing() {
    let (_outer, folder) = folder();
    for (instance, change) in [(1_u64, 8_usize), (2, 40), (3, 0)] {
        let journal = folder.begin(InstanceId(instance)).unwrap();
        journal.write(&Record::Born(of(1))).unwrap();
        journal.write(&Record::Born(of(2))).unwrap();
        let path = journal.path().to_owned();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[change] ^= 0x55;
        std::fs::write(&path, bytes).unwrap();
    }
    // Of another process by its content.
    let journal = folder.begin(InstanceId(4)).unwrap();
    std::fs::copy(journal.path(), folder.path().join("0000000000000005.journal")).unwrap();
    std::fs::write(folder.path().join("notes.journal"), "not one of ours").unwrap();
    drop(journal);
    let lives = folder.lives().unwrap();
    let complaints: Vec<_> = lives.iter().filter_map(Life::complaint).collect();
    assert_eq!(complaints.len(), 4, "{complaints:?}");
    for instance in [1, 2, 3, 5] {
        let answer = lives.past().answer(InstanceId(instance), &guest(), Epoch(9));
        assert_eq!(answer, Some(PastAnswer::MayHaveRun), "{instance}");
    }
    age(folder.path(), "");
    drop(folder.begin(InstanceId(6)).unwrap());
    assert_eq!(folder.lives().unwrap().iter().count(), 5, "only the whole one was removed");
}

/// Makes files whose name begins so look two months old.
fn age(folder: &Path, name: &str) {
    let then = SystemTime::now() - Duration::from_secs(60 * 24 * 60 * 60);
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.file_name().unwrap().to_str().unwrap().starts_with(name) {
            File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        }
    }
}

#[test]
fn old_journals_go_unless_they_leave_something_open_or_close_it() {
    let (_outer, folder) = folder();
    let write = |instance: u64, record: &Record| {
        folder.begin(InstanceId(instance)).unwrap().write(record).unwrap();
    };
    write(1, &may_be_given(2));
    write(2, &Record::Born(of(1)));
    write(3, &Record::Kept(of(2)));
    write(4, &may_run(7));
    let left = || -> Vec<_> { folder.lives().unwrap().iter().map(|life| life.instance.0).collect() };
    age(folder.path(), "0");
    let unfinished = folder.path().join("0000000000000009.new");
    File::create(&unfinished).unwrap().write_all(b"F").unwrap();
    drop(folder.begin(InstanceId(5)).unwrap());
    // The first is closed by the third, which therefore stays as long as the first is there.
    assert_eq!(left(), [3, 4, 5]);
    assert!(!unfinished.exists());
    drop(folder.begin(InstanceId(6)).unwrap());
    assert_eq!(left(), [4, 5, 6]);
}

#[test]
fn births_wait_for_each_other() {
    let (_outer, folder) = folder();
    let hold = folder.hold_births().unwrap();
    let other = folder.clone();
    let waits = std::thread::spawn(move || other.hold_births().map(drop));
    assert!(!waits.is_finished());
    drop(hold);
    waits.join().unwrap().unwrap();
}
