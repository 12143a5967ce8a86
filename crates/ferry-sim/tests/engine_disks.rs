//! Guests whose disks move with them, or lie where both hosts see them: whole moves under load, and everything that
//! can go wrong with an image.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use engine_support::{
    CHURN, Direction, Disky, DiskyBuilder, Fate, Proxy, TRANSPORTS, Transport, Watching, alone, cause_of,
    fresh_address, is_a_sentence, journal, quick, unique, until,
};
use ferry_migrate::journal::{Journal, JournalError, Volatile};
use ferry_migrate::oneway::{Origin, Sink, TakeError, TakeOptions, survey, take};
use ferry_migrate::{
    Address, Arrived, DiskImage, Listener, Machine, MachineError, MigrateOptions, Migration, ReceiveOptions,
    Reception, Report,
};
use ferry_protocol::journal::{Past, Record};
use ferry_protocol::message::ReasonKind;
use ferry_protocol::{Cause, Epoch, InstanceId, SessionId, SourceConfig, SourceOutcome, SourcePhase};
use ferry_sim::{Call, SimFaults, When};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes of the disk: no whole number of pages.
const BYTES: usize = (3 << 20) + 512;

/// A process that waits for a guest with a disk.
struct Waiting {
    address: Address,
    seen: Arc<Watching>,
    thread: JoinHandle<Result<Arrived<Disky>, MachineError>>,
}

impl Waiting {
    fn new(transport: Transport, folder: &Path, mut builder: DiskyBuilder) -> Self {
        let listener = Listener::bind(&fresh_address(transport, folder), false).unwrap();
        let address = listener.address().clone();
        let options = ReceiveOptions { timeouts: quick(), ..ReceiveOptions::new(journal()) };
        let reception = Reception::new(listener, options).unwrap();
        let seen = Arc::new(Watching::default());
        let watching = Arc::clone(&seen);
        let thread = std::thread::spawn(move || reception.wait(&mut builder, &*watching));
        Self { address, seen, thread }
    }

    fn arrived(self) -> Arrived<Disky> {
        until("the arrival of the guest", || self.thread.is_finished());
        self.thread.join().unwrap().unwrap()
    }
}

fn config(guest: &Disky, epoch: u64) -> SourceConfig {
    let name = "guest".parse().unwrap();
    let mut config = SourceConfig::new(name, SessionId(unique()), Epoch(epoch), guest.description());
    config.timeouts = quick();
    config
}

/// A migration with its disks, as `tune` wants it.
fn migration(guest: &Disky, to: &Address, epoch: u64, tune: impl FnOnce(&mut SourceConfig)) -> Migration {
    let mut config = config(guest, epoch);
    tune(&mut config);
    Migration::new(MigrateOptions::new(to.clone(), config, journal())).with_disks()
}

fn migrate(guest: &mut Disky, to: &Address, epoch: u64) -> Report {
    let (report, custody) = migration(guest, to, epoch, |_| {}).run(guest, &());
    assert_eq!(custody, None);
    report
}

fn moved(epoch: u64) -> SourceOutcome {
    SourceOutcome::Moved { epoch: Epoch(epoch) }
}

/// Why a guest was kept; it runs on, with its disk.
fn kept(guest: &mut Disky, report: &Report) -> Cause {
    guest.is_well();
    let cause = cause_of(report);
    is_a_sentence(&cause.to_string());
    cause
}

/// Somebody else cannot have the image.
fn is_locked(path: &Path) {
    let error = DiskImage::open(0, path, false).unwrap().lock().unwrap_err().to_string();
    let named = format!("is in use: process {} (", std::process::id());
    assert!(error.contains(&named), "{error}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Folders of two hosts, and a guest with a disk on the first. One test at a time: `RLIMIT_FSIZE` is one for all threads.
fn scene() -> (Scene, PathBuf, PathBuf, Disky) {
    scene_with(SimFaults::none())
}

/// The same with a guest whose machine fails so.
fn scene_with(faults: SimFaults) -> (Scene, PathBuf, PathBuf, Disky) {
    let folder = Scene { folder: tempfile::tempdir().unwrap(), _alone: alone() };
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    for host in [&here, &there] {
        std::fs::create_dir(host).unwrap();
    }
    let guest = Disky::running(CHURN, faults, &here.join("disk"), BYTES);
    (folder, here, there, guest)
}

struct Scene {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn path(&self) -> &Path {
        self.folder.path()
    }
}

#[test]
fn a_guest_under_load_takes_its_disk_along_and_back_again() {
    let (folder, here, there, mut guest) = scene();
    for (epoch, (lanes, verify)) in [(1, true), (4, false), (2, true), (1, false)].into_iter().enumerate() {
        let epoch = epoch as u64 + 2;
        let host = if epoch.is_multiple_of(2) { &there } else { &here };
        let builder = DiskyBuilder { overwrites: true, ..DiskyBuilder::new(host.join("disk"), &guest.model) };
        let transport = TRANSPORTS[lanes % 2];
        let waiting = Waiting::new(transport, folder.path(), builder);
        let config = migration(&guest, &waiting.address, epoch, |config| {
            (config.lanes, config.verify) = (u8::try_from(lanes).unwrap(), verify);
        });
        let (report, _) = config.run(&mut guest, &());
        assert_eq!(report.outcome, moved(epoch), "{lanes} lanes");
        is_locked(guest.image.path());
        let mut arrived = waiting.arrived();
        arrived.machine.is_well();
        is_locked(&host.join("disk"));
        assert_eq!(names(host), ["disk"]);
        assert_eq!(std::fs::metadata(host.join("disk")).unwrap().len(), BYTES as u64);
        guest = arrived.machine;
    }
}

#[test]
fn a_disk_that_both_hosts_see_changes_hands_with_its_lock() {
    let (folder, here, _, mut guest) = scene();
    let path = here.join("disk");
    let builder = DiskyBuilder::new(path.clone(), &guest.model);
    let waiting = Waiting::new(Transport::Unix, folder.path(), builder.clone());
    let move_it = |guest: &mut Disky, to: &Address, epoch| {
        let options = MigrateOptions::new(to.clone(), config(guest, epoch), journal());
        Migration::new(options).run(guest, &()).0
    };
    assert_eq!(move_it(&mut guest, &waiting.address, 2).outcome, moved(2));
    let mut guest = waiting.arrived().machine;
    guest.is_well();
    is_locked(&path);

    // The target finds it gone, and the source has its lock again.
    let nowhere = DiskyBuilder::new(folder.path().join("nothing"), &guest.model);
    let waiting = Waiting::new(Transport::Unix, folder.path(), nowhere);
    let report = move_it(&mut guest, &waiting.address, 3);
    let cause = kept(&mut guest, &report).to_string();
    assert!(cause.contains("nothing cannot be opened: No such file"), "{cause}");

    // Somebody takes the lock in the moment between the two.
    let waiting = Waiting::new(Transport::Unix, folder.path(), builder);
    let thief = DiskImage::open(0, &path, true).unwrap();
    let steals = move |phase| {
        if phase == SourcePhase::State {
            until("the theft", || thief.lock().is_ok());
        }
        if phase == SourcePhase::Undo {
            thief.unlock().unwrap();
        }
    };
    let options = MigrateOptions::new(waiting.address.clone(), config(&guest, 4), journal());
    let (report, _) = Migration::new(options).run(&mut guest, &Watching::source(steals));
    let cause = kept(&mut guest, &report).to_string();
    assert!(cause.contains("`image-lock disk0` cannot be taken") && cause.contains("in use"), "{cause}");
}

#[test]
fn data_that_did_not_reach_the_disk_keeps_the_guest_until_it_is_told() {
    let (folder, here, there, mut guest) = scene();
    let broken = || std::io::Error::from_raw_os_error(5);
    for (epoch, path) in [(2, here.join("disk")), (3, there.join("disk"))] {
        guest.image.sync_by(|_| Err(broken())).unwrap_err();
        let waiting = Waiting::new(Transport::Unix, folder.path(), DiskyBuilder::new(path, &guest.model));
        let options = MigrateOptions::new(waiting.address.clone(), config(&guest, epoch), journal());
        let migration = Migration::new(options);
        let migration = if epoch == 2 { migration } else { migration.with_disks() };
        let report = migration.run(&mut guest, &()).0;
        let cause = kept(&mut guest, &report).to_string();
        assert!(cause.contains("cannot be brought to the disk") && cause.contains("os error 5"), "{cause}");
        assert_eq!(report.downtime, None, "it was not even paused");
        // The disk's device tells the guest.
        assert_eq!(guest.image.take_failure().unwrap().raw_os_error(), Some(5));
        waiting.seen.not_taken(0);
        if epoch == 3 {
            assert_eq!(migrate(&mut guest, &waiting.address, 4).outcome, moved(4));
            waiting.arrived().machine.is_well();
        }
    }
}

#[test]
fn the_pause_does_not_come_while_the_disk_is_busy() {
    let (folder, here, _, mut guest) = scene();
    let waiting =
        Waiting::new(Transport::Unix, folder.path(), DiskyBuilder::new(here.join("disk"), &guest.model));
    let mut config = config(&guest, 2);
    config.downtime_limit = Duration::from_secs(20);
    config.timeouts.silence = Duration::from_secs(1);
    let (seen, begins, image) = (Watching::default(), Barrier::new(2), Arc::clone(&guest.image));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            image.sync_by(|_| {
                begins.wait();
                seen.wait("that the guest stalls", |told| told.stalled > 0);
                assert!(!seen.told().source.contains(&SourcePhase::Pause), "it was paused");
                Ok(())
            })
        });
        begins.wait();
        let migration = Migration::new(MigrateOptions::new(waiting.address.clone(), config, journal()));
        migration.run(&mut guest, &seen).0
    });
    assert_eq!(report.outcome, moved(2));
    waiting.arrived().machine.is_well();
}

#[test]
fn a_disk_that_is_busy_in_the_pause_keeps_the_guest() {
    let (folder, here, there, mut guest) = scene();
    let waiting =
        Waiting::new(Transport::Unix, folder.path(), DiskyBuilder::new(there.join("disk"), &guest.model));
    // Four times the least limit, whatever the timeouts would allow.
    let migration = migration(&guest, &waiting.address, 2, |config| {
        config.downtime_limit = Duration::from_millis(30);
    });
    let (image, begins, ends) =
        (Arc::clone(&guest.image), Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let over = Arc::clone(&ends);
    let busy = move |phase| {
        if phase == SourcePhase::Pause {
            let (image, begins, ends) = (Arc::clone(&image), Arc::clone(&begins), Arc::clone(&ends));
            image.wrote(0, 512);
            let began = Arc::clone(&begins);
            std::thread::spawn(move || {
                image.sync_by(|_| {
                    begins.wait();
                    ends.wait();
                    Ok(())
                })
            });
            began.wait();
        }
    };
    let (report, custody) = migration.run(&mut guest, &Watching::source(busy));
    assert_eq!(custody, None);
    let cause = kept(&mut guest, &report).to_string();
    assert!(cause.contains("was not on the disk within 1s of the pause"), "{cause}");
    is_locked(&here.join("disk"));
    over.wait();
    assert_eq!(migrate(&mut guest, &waiting.address, 3).outcome, moved(3));
    waiting.arrived().machine.is_well();
}

#[test]
fn a_disk_that_fails_in_the_pause_keeps_the_guest_or_holds_it_paused() {
    for held in [false, true] {
        // The first resume is its birth's.
        let faults = if held { SimFaults::at(Call::Resume, When::Nth(2)) } else { SimFaults::none() };
        let (folder, here, there, mut guest) = scene_with(faults);
        let builder = DiskyBuilder::new(there.join("disk"), &guest.model);
        let waiting = Waiting::new(Transport::Unix, folder.path(), builder);
        let image = Arc::clone(&guest.image);
        let breaks = move |phase| {
            if phase == SourcePhase::Pause {
                image.wrote(0, 512);
                image.sync_by(|_| Err(std::io::Error::from_raw_os_error(5))).unwrap_err();
            }
        };
        let migration = migration(&guest, &waiting.address, 2, |_| {});
        let (report, custody) = migration.run(&mut guest, &Watching::source(breaks));
        if held {
            let SourceOutcome::Held { cause, obstacle } = &report.outcome else { panic!("{report:?}") };
            assert!(cause.to_string().contains("cannot be brought to the disk"), "{cause}");
            assert!(obstacle.contains("resume"), "{obstacle}");
            assert_eq!(report.outcome.exit_status(), 4);
            guest.resume(custody.unwrap()).unwrap();
            guest.is_well();
        } else {
            assert_eq!(custody, None);
            let cause = kept(&mut guest, &report).to_string();
            assert!(cause.contains("cannot be brought to the disk"), "{cause}");
        }
        is_locked(&here.join("disk"));
        guest.image.take_failure().unwrap();
        assert_eq!(migrate(&mut guest, &waiting.address, 3).outcome, moved(3));
        waiting.arrived().machine.is_well();
    }
}

/// A target's journal on a slow disk, which sees whether the network was told of the guest before it writes that it runs.
#[derive(Debug)]
struct Slow {
    inner: Volatile,
    announced: Arc<AtomicBool>,
    was_announced: AtomicBool,
}

impl Journal for Slow {
    fn instance(&self) -> InstanceId {
        self.inner.instance()
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        self.inner.write(record)
    }

    fn note(&self, record: &Record) {
        if let Record::Runs(_) = record {
            self.was_announced.store(self.announced.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.inner.note(record);
    }

    fn past(&self) -> Result<Past, JournalError> {
        self.inner.past()
    }
}

#[test]
fn the_network_is_told_of_the_guest_before_any_disk_is_waited_for() {
    let (folder, here, _, mut guest) = scene();
    let mut builder = DiskyBuilder::new(here.join("disk"), &guest.model);
    let announced = Arc::clone(&builder.announced);
    let (inner, was_announced) = (Volatile::new(InstanceId(unique())), AtomicBool::new(false));
    let journal_there = Arc::new(Slow { inner, announced, was_announced });
    let listener = Listener::bind(&fresh_address(Transport::Unix, folder.path()), false).unwrap();
    let address = listener.address().clone();
    let options = ReceiveOptions::new(Arc::clone(&journal_there) as Arc<dyn Journal>);
    let reception = Reception::new(listener, options).unwrap();
    let thread = std::thread::spawn(move || reception.wait(&mut builder, &()).map(drop));
    let migration = Migration::new(MigrateOptions::new(address, config(&guest, 2), journal()));
    assert_eq!(migration.run(&mut guest, &()).0.outcome, moved(2));
    thread.join().unwrap().unwrap();
    assert!(journal_there.was_announced.load(Ordering::SeqCst));
}

#[test]
fn what_did_not_come_whole_is_removed_and_the_next_try_succeeds() {
    let (folder, here, there, mut guest) = scene();
    // What a process left that was killed before it could write into it.
    std::fs::write(there.join("disk.incoming"), "").unwrap();
    std::fs::write(there.join("disk"), "old").unwrap();
    let builder = DiskyBuilder { overwrites: true, ..DiskyBuilder::new(there.join("disk"), &guest.model) };
    let waiting = Waiting::new(Transport::Tcp, folder.path(), builder);
    let is_as_before =
        || names(&there) == ["disk"] && std::fs::read(there.join("disk")).is_ok_and(|old| old == b"old");
    let frames = ["pages", "round-end", "section", "state-end", "custody"];
    for (epoch, name) in (2..).zip(frames) {
        let cut = move |pass: &engine_support::Pass<'_>| {
            let is_it = pass.direction == Direction::ToTarget && pass.frame.name() == name;
            if is_it { Fate::CutBefore } else { Fate::Pass }
        };
        let proxy = Proxy::new(&fresh_address(Transport::Tcp, folder.path()), &waiting.address, cut);
        let report = migrate(&mut guest, &proxy.address, epoch);
        kept(&mut guest, &report);
        is_locked(&here.join("disk"));
        waiting.seen.not_taken(usize::try_from(epoch).unwrap() - 2);
        until("the removal of the image", is_as_before);
    }
    assert_eq!(migrate(&mut guest, &waiting.address, 9).outcome, moved(9));
    waiting.arrived().machine.is_well();
    until("the removal of the old image", || names(&there) == ["disk"]);
}

#[test]
fn a_target_that_cannot_have_the_disk_refuses_before_a_byte_is_sent() {
    let (folder, _, there, mut guest) = scene();
    let path = there.join("disk");
    std::fs::write(&path, "precious").unwrap();
    let good = DiskyBuilder::new(path.clone(), &guest.model);
    let lost = folder.path().join("no/such/folder/disk");
    for (builder, word) in [
        (good.clone(), "a file is at"),
        (DiskyBuilder { takes_disks: false, ..good.clone() }, "makes no images"),
        (DiskyBuilder::new(there.clone(), &guest.model), "is no image of a disk"),
        (DiskyBuilder::new(lost, &guest.model), "folder cannot be opened"),
        (DiskyBuilder { path: guest.image.path().into(), overwrites: true, ..good.clone() }, "is in use"),
    ] {
        let waiting = Waiting::new(Transport::Unix, folder.path(), builder);
        let report = migrate(&mut guest, &waiting.address, 2);
        assert_eq!(report.data_bytes, 0);
        let cause = kept(&mut guest, &report);
        assert!(matches!(&cause, Cause::Refused(_)), "{cause:?}");
        assert!(cause.to_string().contains(word), "{cause}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(&there), ["disk"]);
}

#[test]
fn an_image_that_becomes_shorter_ends_the_migration_on_the_source() {
    let (folder, _, there, mut guest) = scene();
    let waiting =
        Waiting::new(Transport::Unix, folder.path(), DiskyBuilder::new(there.join("disk"), &guest.model));
    let (image, bytes) = (Arc::clone(&guest.image), BYTES as u64);
    let cuts = move |phase| {
        if phase == SourcePhase::Pause {
            image.file().set_len(bytes / 8).unwrap();
            image.wrote(0, bytes);
        }
    };
    let migration = migration(&guest, &waiting.address, 2, |_| {});
    let (report, _) = migration.run(&mut guest, &Watching::source(cuts));
    let cause = cause_of(&report);
    let Cause::Machine(text) = &cause else { panic!("{cause:?}") };
    assert!(text.contains("here/disk cannot be read from byte") && text.contains("shorter"), "{text}");
    assert_eq!(report.outcome.exit_status(), 4);
    until("the removal of the image", || names(&there).is_empty());
}

/// Sets `RLIMIT_FSIZE`, under which a write past it fails as on a full disk, for all threads of this process.
fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

#[test]
fn a_disk_that_cannot_be_written_on_the_target_is_told_to_the_source_in_one_sentence() {
    // The kernel also sends a signal, which would end the process.
    let unused = Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unused).unwrap();
    let (folder, _, there, mut guest) = scene();
    let waiting =
        Waiting::new(Transport::Tcp, folder.path(), DiskyBuilder::new(there.join("disk"), &guest.model));
    // The guest writes only to the first half, and the third quarter holds data, too.
    let fails = |phase| match phase {
        SourcePhase::Rounds => limit_files(Some(BYTES as u64 * 5 / 8)),
        SourcePhase::Undo | SourcePhase::Pause => limit_files(None),
        _ => {}
    };
    let migration = migration(&guest, &waiting.address, 2, |_| {});
    let (report, _) = migration.run(&mut guest, &Watching::source(fails));
    limit_files(None);
    let cause = kept(&mut guest, &report);
    let Cause::Peer(reason) = &cause else { panic!("{cause:?} {:?}", waiting.seen.told()) };
    assert_eq!(reason.kind, ReasonKind::Machine);
    assert!(reason.text.contains("there/disk cannot be written from byte"), "{}", reason.text);
    assert_eq!(report.outcome.exit_status(), 4);
    until("the removal of the image", || names(&there).is_empty());
    assert_eq!(migrate(&mut guest, &waiting.address, 3).outcome, moved(3));
    waiting.arrived().machine.is_well();
}

#[test]
fn a_file_holds_guest_and_disk() {
    let (folder, _, there, mut guest) = scene();
    let path = folder.path().join("guest.ferry");
    let config = config(&guest, 2);
    let (report, _) =
        Migration::one_way(Sink::file(&path), config, journal()).with_disks().run(&mut guest, &());
    assert_eq!(report.outcome, moved(2));
    let found = survey(&path).unwrap();
    assert_eq!(found.damage, None);
    assert_eq!(found.offer.unwrap().machine.disks[0].bytes, BYTES as u64);
    let options = || TakeOptions { journal: journal(), expected: None, copy: None, timeouts: quick() };
    let mut builder = DiskyBuilder::new(there.join("disk"), &guest.model);
    std::fs::write(&builder.path, "precious").unwrap();
    let refused = take(Origin::File(path.clone()), options(), &mut builder, &()).err();
    assert!(matches!(refused, Some(TakeError::Refused(..))), "{refused:?}");
    std::fs::remove_file(&builder.path).unwrap();
    let mut arrived = take(Origin::File(path), options(), &mut builder, &()).unwrap();
    arrived.machine.is_well();
    assert_eq!(names(&there), ["disk"]);
}
