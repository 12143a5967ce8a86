//! Guests that go into a file or a pipe, and come out of it again; and everything that can go wrong on
//! the way.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use engine_support::{CHURN, PATIENCE, Watching, is_kept, is_undisturbed, journal, quick, running, unique};
use ferry_memory::PAGE_SIZE;
use ferry_migrate::oneway::{
    Direction, FileCopy, Origin, Sink, Stream, TakeError, TakeOptions, survey, take,
};
use ferry_migrate::{Arrived, Custody, Machine, Migration, Observer, Report};
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, PageHead, encode};
use ferry_protocol::message::{Message, ToTarget};
use ferry_protocol::{Cause, Epoch, SessionId, SourceConfig, SourceOutcome, SourcePhase};
use ferry_sim::{SimBuilder, SimConfig, SimMachine, SimOptions, Workload};
use tempfile::TempDir;

/// A guest so small that a file of it can be cut everywhere.
const IDLE: SimConfig = SimConfig {
    seed: 5,
    memory_bytes: 32 * PAGE_SIZE,
    workload: Workload::Idle { patterned_bytes: 4 * PAGE_SIZE },
};

/// `RLIMIT_FSIZE` is one for all threads: tests that write files do so in turn.
fn folder() -> (MutexGuard<'static, ()>, TempDir) {
    static WRITES: Mutex<()> = Mutex::new(());
    let alone = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
    (alone, tempfile::tempdir().unwrap())
}

fn config(machine: &SimMachine, verify: bool) -> SourceConfig {
    let guest = "guest".parse().unwrap();
    let mut config = SourceConfig::new(guest, SessionId(unique()), Epoch(2), machine.description());
    config.timeouts = quick();
    config.verify = verify;
    config
}

fn write(machine: &mut SimMachine, path: &Path, verify: bool) -> (Report, Option<Custody>) {
    let config = config(machine, verify);
    Migration::one_way(Sink::file(path), config, journal()).run(machine, &())
}

/// A file with a guest, and the guest as it was.
fn saved(folder: &Path, of: SimConfig, verify: bool) -> (PathBuf, SimMachine) {
    let path = folder.join(format!("guest-{}", unique()));
    let mut machine = running(of, SimOptions::default());
    let (report, custody) = write(&mut machine, &path, verify);
    assert_eq!(report.outcome, SourceOutcome::Moved { epoch: Epoch(2) });
    assert_eq!(custody, None);
    (path, machine)
}

fn options() -> TakeOptions {
    TakeOptions { journal: journal(), expected: None, copy: None, timeouts: quick() }
}

fn builder() -> SimBuilder {
    SimBuilder::new(SimOptions::default()).with_memory_limit(1 << 30)
}

fn read(path: &Path) -> Result<Arrived<SimMachine>, TakeError> {
    take(Origin::File(path.into()), options(), &mut builder(), &())
}

fn of_name(name: &str) -> FileCopy {
    FileCopy { guest: name.parse().unwrap(), epoch: Epoch::BIRTH }
}

fn copy(path: &Path, name: &str) -> Result<Arrived<SimMachine>, TakeError> {
    let options = TakeOptions { copy: Some(of_name(name)), ..options() };
    take(Origin::File(path.into()), options, &mut builder(), &())
}

#[test]
fn a_guest_goes_through_a_file_undisturbed() {
    let (_alone, folder) = folder();
    for (of, verify) in [(CHURN, true), (CHURN, false), (IDLE, true)] {
        let (path, source) = saved(folder.path(), of, verify);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let found = survey(&path).unwrap();
        assert_eq!((found.damage.clone(), found.taken.clone()), (None, None));
        assert_eq!(found.custody.unwrap().epoch, Epoch(2));
        assert!(found.rounds >= 2 && found.memory_hash.is_some() == verify, "{found:?}");
        let mut arrived = read(&path).unwrap();
        assert_eq!((arrived.guest.as_str(), arrived.epoch), ("guest", Epoch(2)));
        assert!(arrived.machine.report().progress >= source.report().progress);
        is_undisturbed(&mut arrived.machine);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing partial is left");
}

#[test]
fn custody_is_taken_once_and_the_second_hears_who_has_it() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let _first = read(&path).unwrap();
    let error = read(&path).unwrap_err();
    let TakeError::Taken { taken, .. } = &error else { panic!("{error:?}") };
    assert_eq!(taken.pid, std::process::id());
    assert!(taken.unix_seconds > 1_700_000_000 && !taken.host.is_empty());
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()) && text.contains("--clone"), "{text}");
    assert_eq!(survey(&path).unwrap().taken.as_ref(), Some(taken));
}

#[test]
fn of_many_takers_at_once_one_gets_it() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let start = Arc::new(Barrier::new(8));
    let takers: Vec<_> = (0..8)
        .map(|_| {
            let (start, path) = (Arc::clone(&start), path.clone());
            std::thread::spawn(move || {
                start.wait();
                read(&path)
            })
        })
        .collect();
    let results: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(matches!(error, TakeError::Busy(_) | TakeError::Taken { .. }), "{error:?}");
    }
}

#[test]
fn a_copy_is_a_guest_of_its_own_and_leaves_the_custody() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), CHURN, true);
    let before = std::fs::read(&path).unwrap();
    let mut first = copy(&path, "copy-1").unwrap();
    assert_eq!((first.guest.as_str(), first.epoch), ("copy-1", Epoch::BIRTH));
    is_undisturbed(&mut first.machine);
    assert_eq!(first.machine.pause().unwrap().guest().as_str(), "copy-1");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(copy(&path, "copy-2").is_ok(), "a copy needs no right to write");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(read(&path).is_ok(), "custody is still there");
    assert!(copy(&path, "copy-3").is_ok(), "a taken file can still be copied");
}

/// Where each frame begins, and the end.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let (mut at, mut all) = (0, vec![0]);
    while at < bytes.len() {
        let header = Header::parse(bytes[at..at + HEADER_BYTES].try_into().unwrap()).unwrap();
        let head = &bytes[at + HEADER_BYTES..][..header.head_bytes];
        at += HEADER_BYTES + header.head_bytes;
        if header.kind == FrameKind::Pages {
            at += usize::try_from(PageHead::parse(header.kind, head).unwrap().data_bytes()).unwrap();
        }
        all.push(at);
    }
    assert_eq!(at, bytes.len());
    all
}

#[test]
fn a_file_that_ends_early_is_refused_with_the_place() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, true);
    let bytes = std::fs::read(&path).unwrap();
    let ends = boundaries(&bytes);
    let whole = ends.iter().rev().skip(1);
    let middles = ends.windows(2).flat_map(|pair| [pair[0] + 1, pair[0] + 17, pair[1] - 1]);
    let cut_path = folder.path().join("cut");
    for cut in whole.copied().chain(middles) {
        std::fs::write(&cut_path, &bytes[..cut]).unwrap();
        let begins = ends.iter().rev().find(|&&end| end <= cut).copied().unwrap();
        for error in [read(&cut_path).unwrap_err(), copy(&cut_path, "c").unwrap_err()] {
            let TakeError::Damaged(damage) = &error else { panic!("cut at {cut}: {error:?}") };
            assert_eq!(damage.offset, begins as u64, "cut at {cut}: {error}");
            assert!(error.to_string().contains(&format!("byte {begins}: it ends")), "{error}");
        }
        assert_eq!(std::fs::read(&cut_path).unwrap().len(), cut, "nothing was written into it");
    }
}

#[test]
fn every_garbled_frame_is_refused_with_the_place_and_never_marked() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let bytes = std::fs::read(&path).unwrap();
    let ends = boundaries(&bytes);
    let bad_path = folder.path().join("bad");
    for pair in ends.windows(2) {
        // A header, a head, and the last byte: page data, where there is some.
        for at in [pair[0] + 2, pair[0] + HEADER_BYTES, pair[1] - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            std::fs::write(&bad_path, &bad).unwrap();
            let error = read(&bad_path).unwrap_err();
            let TakeError::Damaged(damage) = &error else { panic!("byte {at}: {error:?}") };
            assert_eq!(damage.offset, pair[0] as u64, "byte {at}: {error}");
            assert_eq!(std::fs::read(&bad_path).unwrap(), bad, "byte {at}: it was marked");
        }
    }
}

#[test]
fn what_follows_the_custody_is_refused() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let bytes = std::fs::read(&path).unwrap();
    let custody = bytes[boundaries(&bytes).iter().rev().nth(1).copied().unwrap()..].to_vec();
    for tail in [b"x".to_vec(), vec![0; 40], custody, b"not of ferry's making".to_vec()] {
        let mut bad = bytes.clone();
        bad.extend_from_slice(&tail);
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(read(&path).unwrap_err(), TakeError::Damaged(_)), "{tail:?}");
    }
}

#[test]
fn other_kinds_versions_and_programs_are_told_apart() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let bytes = std::fs::read(&path).unwrap();
    let ends = boundaries(&bytes);
    let message = |at: usize| ToTarget::from_bytes(&bytes[ends[at] + HEADER_BYTES..ends[at + 1]]).unwrap();
    let (ToTarget::Hello(mut hello), ToTarget::Offer(mut offer)) = (message(0), message(1)) else { panic!() };
    let with = |hello: &ToTarget, offer: &ToTarget| {
        let mut changed = encode(FrameKind::ToTarget, &hello.to_bytes());
        changed.extend(encode(FrameKind::ToTarget, &offer.to_bytes()));
        changed.extend_from_slice(&bytes[ends[2]..]);
        std::fs::write(&path, changed).unwrap();
        read(&path).unwrap_err()
    };
    let good = (ToTarget::Hello(hello.clone()), ToTarget::Offer(offer.clone()));
    (hello.version_min, hello.version_max) = (700, 701);
    assert!(matches!(with(&ToTarget::Hello(hello), &good.1), TakeError::Incompatible(_)));
    offer.machine.kind = "abacus".into();
    assert!(matches!(with(&good.0, &ToTarget::Offer(offer)), TakeError::Refused(..)));
    std::fs::write(&path, b"#!/bin/sh\necho not a guest at all\n").unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("byte 0: what begins here is not of Ferry's making"), "{error}");
    assert!(matches!(read(folder.path()).unwrap_err(), TakeError::Open { .. }), "a folder");
}

#[test]
fn a_guest_that_cannot_be_started_leaves_the_custody_in_the_file() {
    let (_alone, folder) = folder();
    let (path, _) = saved(folder.path(), IDLE, false);
    let before = std::fs::read(&path).unwrap();
    let expects = TakeOptions { expected: Some("other".parse().unwrap()), ..options() };
    let error = take(Origin::File(path.clone()), expects, &mut builder(), &()).unwrap_err();
    assert!(matches!(&error, TakeError::NotTaken(text) if text.contains("other")), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert!(read(&path).is_ok());
}

#[test]
fn nothing_is_overwritten() {
    let (_alone, folder) = folder();
    let mut machine = running(IDLE, SimOptions::default());
    let path = folder.path().join("there");
    for name in ["there", "there.partial"] {
        let other = folder.path().join(name);
        std::fs::write(&other, b"mine").unwrap();
        let (report, _) = write(&mut machine, &path, false);
        let SourceOutcome::Kept { cause: Cause::NotReached(text) } = report.outcome else { panic!() };
        assert!(text.contains(name), "{text}");
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        std::fs::remove_file(other).unwrap();
    }
    let (report, _) = write(&mut machine, &folder.path().join("no/such"), false);
    assert_eq!(report.outcome.exit_status(), 1);
    is_undisturbed(&mut machine);
}

/// The file may be no longer than this.
fn file_limit(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

#[test]
fn a_full_disk_at_any_place_leaves_the_guest_here_and_no_file() {
    let unused = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unused).unwrap();
    let (_alone, folder) = folder();
    let mut machine = running(IDLE, SimOptions::default());
    // What a whole file of it takes.
    let whole = {
        let mut twin = running(IDLE, SimOptions::default());
        let path = folder.path().join("whole");
        write(&mut twin, &path, true);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        boundaries(&bytes)
    };
    let path = folder.path().join("guest");
    let places = whole.windows(2).flat_map(|pair| [pair[0], pair[0] + 1, pair[1] - 1]);
    for limit in places.map(|place| place as u64) {
        file_limit(Some(limit));
        let (report, custody) = write(&mut machine, &path, true);
        file_limit(None);
        let SourceOutcome::Kept { cause } = &report.outcome else { panic!("{limit}: {report:?}") };
        assert_eq!(report.outcome.exit_status(), 4, "{limit}: {cause}");
        assert_eq!(custody, None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "at {limit} a file is left");
    }
    is_kept(&mut machine);
    let (report, _) = write(&mut machine, &path, true);
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
}

/// Puts another file under the name while the migration is under way.
struct Squatter(PathBuf);

impl Observer for Squatter {
    fn source_phase(&self, phase: SourcePhase) {
        if phase == SourcePhase::Ready {
            std::fs::write(&self.0, b"mine").unwrap();
        }
    }
}

#[test]
fn a_name_that_is_gone_at_the_end_is_doubtful_and_the_guest_stays_paused() {
    let (_alone, folder) = folder();
    let path = folder.path().join("guest");
    let mut machine = running(IDLE, SimOptions::default());
    let config = config(&machine, false);
    let (report, custody) =
        Migration::one_way(Sink::file(&path), config, journal()).run(&mut machine, &Squatter(path.clone()));
    let SourceOutcome::Doubtful { known, .. } = &report.outcome else { panic!("{report:?}") };
    assert!(known.contains("custody is in") && known.contains(".partial"), "{known}");
    assert_eq!((report.outcome.exit_status(), custody), (6, None), "nothing here can run the guest");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let mut arrived = read(&folder.path().join("guest.partial")).unwrap();
    is_undisturbed(&mut arrived.machine);
}

fn stream(end: impl Into<OwnedFd>, direction: Direction) -> Stream {
    Stream::new(end.into(), direction).unwrap()
}

fn from_stream(end: impl Into<OwnedFd>) -> Result<Arrived<SimMachine>, TakeError> {
    let origin = Origin::Stream(stream(end, Direction::In), "fd:3".into());
    take(origin, options(), &mut builder(), &())
}

#[test]
fn a_guest_goes_through_a_pipe_and_a_socket() {
    let (pipe_out, pipe_in) = std::io::pipe().unwrap();
    let (socket_out, socket_in) = std::os::unix::net::UnixStream::pair().unwrap();
    let pairs: [(OwnedFd, OwnedFd); 2] =
        [(pipe_out.into(), pipe_in.into()), (socket_out.into(), socket_in.into())];
    for (out, into) in pairs {
        let mut source = running(CHURN, SimOptions::default());
        let reader = std::thread::spawn(move || from_stream(out));
        let config = config(&source, true);
        let (report, custody) =
            Migration::one_way(Sink::stream(stream(into, Direction::Out)), config, journal())
                .run(&mut source, &());
        assert_eq!((report.outcome, custody), (SourceOutcome::Moved { epoch: Epoch(2) }, None));
        let mut arrived = reader.join().unwrap().unwrap();
        is_undisturbed(&mut arrived.machine);
    }
}

/// All that a whole stream of the idle guest is.
fn whole_stream(machine: &mut SimMachine) -> Vec<u8> {
    let (mut out, into) = std::io::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        out.read_to_end(&mut all).unwrap();
        all
    });
    let config = config(machine, false);
    Migration::one_way(Sink::stream(stream(into, Direction::Out)), config, journal()).run(machine, &());
    reader.join().unwrap()
}

#[test]
fn a_stream_that_breaks_leaves_exactly_one_holder() {
    let bytes = whole_stream(&mut running(IDLE, SimOptions::default()));
    let ends = boundaries(&bytes);
    // The reader's side: whatever is cut off, no guest.
    for cut in ends.windows(2).flat_map(|pair| [pair[0], pair[0] + 5, pair[1] - 1]) {
        let (out, mut into) = std::io::pipe().unwrap();
        let begun = bytes[..cut].to_vec();
        let writer = std::thread::spawn(move || into.write_all(&begun));
        let error = from_stream(out).unwrap_err();
        assert!(matches!(error, TakeError::Damaged(_)), "cut at {cut}: {error:?}");
        let _ = writer.join().unwrap();
    }
    // The source's side: a reader that goes away early leaves the guest here.
    // More than a socket holds by itself: when the reader goes, custody is not written yet.
    let workload = Workload::Idle { patterned_bytes: 2048 * PAGE_SIZE };
    let large = SimConfig { seed: 6, memory_bytes: 4096 * PAGE_SIZE, workload };
    let mut machine = running(large, SimOptions::default());
    for taken in [0, 1, 100, 20_000, 1_000_000] {
        let (mut out, into) = std::os::unix::net::UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut some = vec![0; taken];
            let _ = out.read_exact(&mut some);
        });
        let config = config(&machine, true);
        let (report, _) = Migration::one_way(Sink::stream(stream(into, Direction::Out)), config, journal())
            .run(&mut machine, &());
        reader.join().unwrap();
        assert_eq!(report.outcome.exit_status(), 4, "{report:?}");
    }
    is_kept(&mut machine);
}

#[test]
fn a_reader_that_does_not_read_ends_the_wait() {
    let (_out, into) = std::io::pipe().unwrap();
    let mut machine = running(CHURN, SimOptions::default());
    let mut config = config(&machine, false);
    config.timeouts.silence = engine_support::SHORT;
    let began = std::time::Instant::now();
    let (report, _) = Migration::one_way(Sink::stream(stream(into, Direction::Out)), config, journal())
        .run(&mut machine, &Watching::default());
    assert_eq!(report.outcome.exit_status(), 7, "{report:?}");
    assert!(began.elapsed() < PATIENCE);
    is_kept(&mut machine);
}

#[test]
fn only_pipes_and_stream_sockets_of_the_right_direction_are_taken() {
    let file = tempfile::tempfile().unwrap();
    assert!(Stream::new(file.into(), Direction::Out).is_err());
    let (out, into) = std::io::pipe().unwrap();
    assert!(Stream::new(out.into(), Direction::Out).is_err());
    assert!(Stream::new(into.into(), Direction::In).is_err());
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    assert!(Stream::new(datagram.into(), Direction::In).is_err());
    let (out, _into) = std::io::pipe().unwrap();
    let options = TakeOptions { copy: Some(of_name("copy")), ..options() };
    let origin = Origin::Stream(stream(out, Direction::In), "fd:3".into());
    assert!(matches!(take(origin, options, &mut builder(), &()), Err(TakeError::CloneOfStream)));
}
