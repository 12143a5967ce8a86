//! Journals as files: disks that fill, processes that are gone, folders that are cleaned up.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ferry_protocol::journal::{Choice, MayBeGiven, MayRun, OfGuest, PastAnswer, Record, Waived};
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{Epoch, GuestId, InstanceId, SessionId};

use super::file::{Medium, Writer};
use super::form::{frame, header};
use super::lives::MAX_LIVES;
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
    assert_eq!(folder.lives().unwrap().past().lives().count(), 0);
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
    let begun = ["0000000000000009.new", "000000000000000a.new"].map(|name| folder.path().join(name));
    File::create(&begun[0]).unwrap().write_all(b"F").unwrap();
    age(folder.path(), "0");
    // Its process has not come to lock it yet.
    File::create(&begun[1]).unwrap();
    drop(folder.begin(InstanceId(5)).unwrap());
    // The first is closed by the third, which therefore stays as long as the first is there.
    assert_eq!(left(), [3, 4, 5]);
    assert_eq!(begun.map(|path| path.exists()), [false, true]);
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

#[test]
fn an_end_says_nothing_of_a_later_epoch() {
    let (_outer, folder) = folder();
    let journal = folder.begin(InstanceId(1)).unwrap();
    let has = || folder.lives().unwrap().living_with(&guest()).next().is_some();
    let other = Record::Refused(OfGuest { guest: "h".parse().unwrap(), epoch: Epoch(9) });
    // The refusal of the first could be written only when the second was under way.
    for (record, expected) in [
        (may_run(2), true),
        (may_run(3), true),
        (Record::Refused(of(2)), true),
        (other, true),
        (Record::Refused(of(3)), false),
        (Record::Runs(of(5)), true),
        (Record::Ended(of(4)), true),
        (Record::Moved(of(6)), false),
    ] {
        journal.write(&record).unwrap();
        assert_eq!(has(), expected, "{record:?}");
    }
}

#[test]
fn what_a_process_that_lives_wrote_is_told_in_its_place() {
    let (_outer, folder) = folder();
    let journal = folder.begin(InstanceId(1)).unwrap();
    let answer = |epoch| folder.lives().unwrap().past().answer(InstanceId(1), &guest(), Epoch(epoch));
    journal.write(&may_run(2)).unwrap();
    assert_eq!(answer(2), Some(PastAnswer::Undecided));
    journal.write(&Record::Refused(of(2))).unwrap();
    journal.write(&may_run(3)).unwrap();
    journal.note(&Record::Runs(of(3)));
    assert_eq!((answer(2), answer(3)), (Some(PastAnswer::NeverRan), Some(PastAnswer::Took)));
    assert_eq!(folder.lives().unwrap().past().floor(&guest()), None);
}

#[test]
fn of_two_processes_that_take_one_name_at_once_one_gets_it() {
    let (_outer, folder) = folder();
    for round in 0..20_u64 {
        let journals = [0, 1].map(|number| folder.begin(InstanceId(2 * round + number)).unwrap());
        // Both have looked, and seen nobody.
        assert!(journals.iter().all(|journal| journal.holder(&guest(), None).unwrap().is_none()));
        let start = std::sync::Barrier::new(2);
        let take = |journal: &FileJournal| {
            start.wait();
            journal.take_name(&may_run(round + 2), None)
        };
        let results = std::thread::scope(|scope| {
            let takers = journals.each_ref().map(|journal| scope.spawn(|| take(journal)));
            takers.map(|taker| taker.join().unwrap())
        });
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "{results:?}");
        let lost = results.into_iter().find_map(Result::err).unwrap();
        assert!(matches!(lost, JournalError::Taken { .. }), "{lost:?}");
        assert!(lost.to_string().contains("ferry recover g"), "{lost}");
    }
    // The source of the very guest may be on this host.
    let (source, target) = (folder.begin(InstanceId(101)).unwrap(), folder.begin(InstanceId(102)).unwrap());
    source.take_name(&Record::Born(of(30)), None).unwrap();
    target.take_name(&may_run(31), None).unwrap_err();
    target.take_name(&may_run(31), Some(InstanceId(101))).unwrap();
}

#[test]
fn the_highest_epoch_outlives_its_journal() {
    let (_outer, folder) = folder();
    let write = |instance: u64, records: &[Record]| {
        let journal = folder.begin(InstanceId(instance)).unwrap();
        journal.write_all(records.iter().cloned()).unwrap();
    };
    let born_alone = Record::Born(OfGuest { guest: "h".parse().unwrap(), epoch: Epoch(1) });
    write(1, &[Record::Born(of(1)), may_be_given(7), Record::Moved(of(7)), born_alone]);
    age(folder.path(), "0");
    let journal = folder.begin(InstanceId(2)).unwrap();
    let floors = || {
        let lives = folder.lives().unwrap();
        (lives.iter().count(), lives.highest(&guest()), lives.past().floor(&guest()))
    };
    assert_eq!(floors(), (1, Some(Epoch(7)), Some(Epoch(7))), "also while the process lives that cleaned up");
    assert_eq!(folder.lives().unwrap().highest(&"h".parse().unwrap()), None, "it was offered to nobody");
    drop(journal);
    // And on, as often as that one's journal is removed in turn.
    for instance in 3..6 {
        age(folder.path(), "0");
        drop(folder.begin(InstanceId(instance)).unwrap());
        assert_eq!(floors(), (1, Some(Epoch(7)), Some(Epoch(7))));
    }
    // What a journal that stays mentions is not written again.
    write(6, &[may_run(8), Record::Refused(of(8))]);
    age(folder.path(), "0000000000000005");
    drop(folder.begin(InstanceId(7)).unwrap());
    let lives = folder.lives().unwrap();
    let is_floor = |record: &&Record| matches!(record, Record::Floor(_));
    assert_eq!(lives.iter().flat_map(|life| &life.content.records).filter(is_floor).count(), 0);
    assert_eq!(lives.highest(&guest()), Some(Epoch(8)));
}

#[test]
fn what_a_person_waived_of_a_damaged_journal_stays_as_long_as_that_is_there() {
    let (_outer, folder) = folder();
    let journal = folder.begin(InstanceId(1)).unwrap();
    let path = journal.path().to_owned();
    drop(journal);
    std::fs::write(&path, "not a journal any more").unwrap();
    let unknown = |name: &str| folder.lives().unwrap().unknown(&name.parse().unwrap()).count();
    assert_eq!((unknown("g"), unknown("h")), (1, 1), "it may have had any guest");
    let (reason, choice) = ("the disk was bad".to_owned(), Choice::Abandon);
    let (instance, epoch) = (InstanceId(1), Epoch(0));
    let waived = Waived { guest: guest(), epoch, instance, choice, reason, unix_seconds: 7 };
    folder.begin(InstanceId(2)).unwrap().write(&Record::Waived(waived)).unwrap();
    assert_eq!((unknown("g"), unknown("h")), (0, 1));
    assert_eq!(folder.lives_of(&guest()).unwrap().unknown(&guest()).count(), 0);
    assert_eq!(folder.lives().unwrap().past().birth(&guest()), Epoch::BIRTH);
    let left = |life: u64| folder.lives().unwrap().life(InstanceId(life)).is_some();
    age(folder.path(), "0");
    drop(folder.begin(InstanceId(3)).unwrap());
    assert!(left(1) && left(2));
    std::fs::remove_file(path).unwrap();
    drop(folder.begin(InstanceId(4)).unwrap());
    assert!(!left(2), "nobody needs it any more");
}

#[test]
fn a_folder_of_too_many_journals_can_be_settled_and_cleaned_up() {
    let (_outer, folder) = folder();
    let many = u64::try_from(MAX_LIVES).unwrap() + 1;
    for instance in 1..=many {
        let records = if instance == 7 { vec![may_run(2)] } else { vec![Record::Born(of(1))] };
        let path = folder.path().join(format!("{}.journal", InstanceId(instance)));
        std::fs::write(path, Content::encode(InstanceId(instance), &records)).unwrap();
    }
    for error in [folder.lives().map(drop), folder.lives().map(drop)] {
        let text = crate::source::sentence(&error.unwrap_err());
        assert!(text.contains("more than 4096 journals") && text.contains("`ferry recover g`"), "{text}");
    }
    let open = folder.lives_of(&guest()).unwrap().open(Some(&guest()));
    assert_eq!(open.len(), 1);
    // Settling it writes a journal, and whoever begins one cleans up.
    let journal = folder.begin(InstanceId(many + 1)).unwrap();
    assert!(folder.lives().unwrap().iter().count() < 1100);
    drop(journal);
}

#[test]
fn who_is_gone_with_the_guest_on_both_sides_is_known() {
    // What the target wrote, and whether the guest is gone for certain.
    let cases: [(&[Record], bool); 5] = [
        (&[may_run(2)], true),
        (&[may_run(2), Record::Runs(of(2))], true),
        (&[may_run(2), Record::Refused(of(2))], false),
        (&[may_run(2), Record::Runs(of(2)), may_be_given(3)], false),
        (&[], false),
    ];
    for (records, gone) in cases {
        let (_outer, folder) = folder();
        folder.begin(InstanceId(1)).unwrap().write(&may_be_given(2)).unwrap();
        let target = folder.begin(InstanceId(9)).unwrap();
        target.write_all(records.iter().cloned()).unwrap();
        let both = || {
            let lives = folder.lives().unwrap();
            let open: Vec<_> = lives.open(None).into_iter().filter(|open| open.epoch == Epoch(2)).collect();
            (open.len(), open.iter().filter(|open| lives.both_are_gone(open)).count())
        };
        assert_eq!(both().1, 0, "the target lives");
        drop(target);
        let (open, known) = both();
        assert_eq!(known, if gone { open } else { 0 }, "{records:?}");
        assert!(!gone || open > 0, "{records:?}");
    }
}
