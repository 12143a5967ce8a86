//! The block device.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use ferry_memory::{Layout, PageRange, PageSet, Span};
use ferry_migrate::{Device as _, Saved};
use ferry_state::Section;
use ferry_state::device::{VirtioBlock, VirtioTransport};
use rustix::fs::{MemfdFlags, SealFlags};
use tempfile::NamedTempFile;

use super::*;

const SECTORS: u64 = 128;
const HEAD: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x6000;

fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SECTORS * 512).map(|at| u8::try_from(at / 512).unwrap()).collect();
    file.write_all(&bytes).unwrap();
    file
}

fn open(path: &Path, read_only: bool) -> Arc<DiskImage> {
    DiskImage::open(0, path, read_only).unwrap()
}

fn rig(path: &Path, is_read_only: bool) -> Rig<Block> {
    let rig = Rig::new(Block::new(open(path, is_read_only), 3), memory());
    rig.device.resume().unwrap();
    rig
}

impl Rig<Block> {
    /// A read from the first sector on into these buffers, with head and status below them.
    fn request_of(&self, data: &[Buffer]) {
        let (head, status) = (0x3_0000, 0x3_1000);
        self.fill(head, &[0; 16]);
        let mut buffers = vec![reads(head, 16)];
        buffers.extend(data);
        buffers.push(writes(status, 1));
        self.request(0, 0, &buffers);
    }

    fn ask_for(&self, kind: u32, sector: u64, data: &[Buffer]) {
        let mut head = u64::from(kind).to_le_bytes().to_vec();
        head.extend(sector.to_le_bytes());
        self.fill(HEAD, &head);
        self.fill(STATUS, &[0xff]);
        let mut buffers = vec![reads(HEAD, 16)];
        buffers.extend(data);
        buffers.push(writes(STATUS, 1));
        self.request(0, 0, &buffers);
    }

    /// Asks, lets the device answer, gives the status.
    fn ask(&self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        self.ask_for(kind, sector, data);
        self.device.turn();
        self.bytes(STATUS, 1)[0]
    }
}

#[test]
fn sectors_are_written_and_read_and_brought_to_the_disk() {
    let file = image();
    let rig = rig(file.path(), false);
    rig.start();
    assert_eq!(rig.ask(0, 5, &[writes(DATA, 512), writes(DATA + 0x1000, 1024)]), 0);
    assert_eq!(rig.bytes(DATA, 512), [5; 512]);
    assert_eq!(rig.bytes(DATA + 0x1000, 512), [6; 512]);
    assert_eq!(rig.bytes(DATA + 0x1200, 512), [7; 512]);
    rig.fill(DATA, &[0xaa; 1024]);
    assert_eq!(rig.ask(1, 126, &[reads(DATA, 100), reads(DATA + 100, 924)]), 0);
    let mut found = [0; 1024];
    file.as_file().read_exact_at(&mut found, 126 * 512).unwrap();
    assert_eq!(found, [0xaa; 1024]);
    assert_eq!(rig.ask(4, 0, &[]), 0);
    assert_eq!(rig.ask(8, 0, &[writes(DATA, 20)]), 0);
    assert_eq!(rig.bytes(DATA, 8), *b"ferry-3\0");
    assert_eq!(rig.used(0), [(0, 1537), (0, 1), (0, 1), (0, 21)]);
    assert_eq!(rig.acknowledge(), 1);
    assert!(!rig.line.is_high());
    let mut capacity = [0; 8];
    rig.device.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
}

#[test]
fn what_no_disk_does_fails_the_request_and_nothing_else() {
    let file = image();
    let rig = rig(file.path(), false);
    rig.start();
    for (kind, sector, data, status) in [
        (0, SECTORS, writes(DATA, 512), 1),
        (0, SECTORS - 1, writes(DATA, 1024), 1),
        (1, u64::MAX, reads(DATA, 512), 1),
        (1, 1 << 55, reads(DATA, 512), 1),
        (0, 0, writes(DATA, 100), 1),
        (1, 0, reads(DATA, 511), 1),
        (77, 0, writes(DATA, 512), 2),
    ] {
        assert_eq!(rig.ask(kind, sector, &[data]), status, "{kind} {sector}");
    }
    assert_eq!(rig.status(), 15);
    // Somebody cuts the image off: what is left is read, the rest fails.
    file.as_file().set_len(64 * 512).unwrap();
    assert_eq!(rig.ask(0, 63, &[writes(DATA, 512)]), 0);
    assert_eq!(rig.ask(0, 64, &[writes(DATA, 512)]), 1);
    assert_eq!(rig.status(), 15);
}

#[test]
fn an_image_that_cannot_be_written_fails_the_request() {
    let fd = rustix::fs::memfd_create("image", MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.set_len(4096).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let writable = rig(Path::new(&path), false);
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    writable.start();
    assert_eq!(writable.ask(1, 0, &[reads(DATA, 512)]), 1);
    assert_eq!(writable.status(), 15);

    let file = image();
    let only = rig(file.path(), true);
    assert_eq!(only.offered() >> 5 & 1, 1, "the driver is told");
    only.start();
    assert_eq!(only.ask(1, 0, &[reads(DATA, 512)]), 1);
    assert_eq!(only.ask(0, 9, &[writes(DATA, 512)]), 0);
}

#[test]
fn every_page_that_the_device_wrote_is_noted_once() {
    let file = image();
    let rig = rig(file.path(), false);
    rig.start();
    let layout = Layout::new(vec![Span { start: 0, length: MEMORY as u64 }]).unwrap();
    let mut noted = PageSet::empty(&layout);
    rig.device.harvest_dirty(&mut noted).unwrap();
    assert!(noted.is_empty(), "the driver's own writes are not the device's");
    assert_eq!(rig.ask(0, 0, &[writes(DATA + 0xffe, 512)]), 0);
    rig.device.harvest_dirty(&mut noted).unwrap();
    let [_, _, used] = Rig::<Block>::rings(0);
    let page = |address: u64, count| PageRange { first: address / 4096, count };
    assert_eq!(noted.ranges().collect::<Vec<_>>(), [page(used, 1), page(DATA, 2), page(STATUS, 1)]);
    noted.clear();
    rig.device.harvest_dirty(&mut noted).unwrap();
    assert!(noted.is_empty());
}

/// Waits until the device has answered so many requests.
fn wait_for(rig: &Rig<Block>, count: usize) {
    let (deadline, (_never, nothing)) = (Instant::now() + Duration::from_secs(20), never());
    while rig.used(0).len() < count {
        assert!(Instant::now() < deadline, "the device does not answer");
        let _timeout = nothing.recv_timeout(Duration::from_millis(1));
    }
}

fn never() -> (mpsc::Sender<()>, Receiver<()>) {
    mpsc::channel()
}

#[test]
fn a_guest_goes_on_with_its_disk_elsewhere_and_after_a_move_that_failed() {
    let file = image();
    let source = Rig::new(Block::new(open(file.path(), false), 3), memory());
    let mut its_thread = Thread::start(Arc::clone(&source.device)).unwrap();
    its_thread.resume().unwrap();
    source.start();
    source.ask_for(0, 9, &[writes(DATA, 512)]);
    wait_for(&source, 1);
    its_thread.quiesce().unwrap();
    // The guest stands still here; this notification came just before.
    source.fill(DATA, &[0; 512]);
    source.ask_for(0, 10, &[writes(DATA, 512)]);
    let Saved::Section(section) = its_thread.save().unwrap() else { panic!("nothing is saved") };
    assert_eq!(source.used(0).len(), 1, "a quiet device does nothing");

    let other = image();
    let line = Arc::<Counted>::default();
    let target = Device::new(
        Block::new(open(other.path(), false), 3),
        3,
        source.memory.clone(),
        Box::new(CountedLine(Arc::clone(&line))),
    );
    let target = Rig { device: Arc::new(target.unwrap()), memory: source.memory.clone(), line };
    let mut target_thread = Thread::start(Arc::clone(&target.device)).unwrap();
    target_thread.restore(&section).unwrap();
    target_thread.resume().unwrap();
    wait_for(&target, 2);
    assert_eq!(target.bytes(DATA, 512), [10; 512]);
    assert!(target.line.is_high());
    assert_eq!(target.acknowledge(), 1);
    target_thread.quiesce().unwrap();

    // Back where it came from, as after a migration that failed: all memory is as it was.
    let [_, _, used] = Rig::<Block>::rings(0);
    source.memory.write_obj(1_u16, GuestAddress(used + 2)).unwrap();
    source.fill(DATA, &[0; 512]);
    its_thread.resume().unwrap();
    wait_for(&source, 2);
    assert_eq!(source.bytes(DATA, 512), [10; 512]);
    assert_eq!(source.acknowledge(), 1);
}

#[test]
fn another_disk_is_refused() {
    let (file, other) = (image(), image());
    let source = rig(file.path(), false);
    source.start();
    source.device.quiesce().unwrap();
    let Saved::Section(section) = source.device.save().unwrap() else { panic!("nothing is saved") };
    other.as_file().set_len(4096).unwrap();
    let target = Rig::new(Block::new(open(other.path(), false), 3), memory());
    let error = target.device.restore(&section).unwrap_err().to_string();
    assert!(error.starts_with("the guest's disk has 128 sectors of 512 bytes, the image "), "{error}");
    assert!(error.ends_with(" has 8"), "{error}");
    let target = Rig::new(Block::new(open(file.path(), true), 3), memory());
    target.device.restore(&section).unwrap();
    assert_eq!(target.offered(), source.offered(), "the guest sees what it was offered at birth");
}

fn broken(_: &File) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(5))
}

/// A device on this image that runs.
fn over(image: &Arc<DiskImage>) -> Rig<Block> {
    let rig = Rig::new(Block::new(Arc::clone(image), 3), memory());
    rig.device.resume().unwrap();
    rig.start();
    rig
}

#[test]
fn a_write_back_that_failed_for_somebody_else_fails_the_guests_next_flush_and_no_more() {
    let file = image();
    let image = open(file.path(), false);
    let rig = over(&image);
    assert_eq!(rig.ask(1, 0, &[reads(DATA, 512)]), 0);
    image.sync_by(broken).unwrap_err();
    // As in a migration that fails for it.
    rig.device.quiesce().unwrap();
    rig.device.resume().unwrap();
    assert_eq!(rig.ask(0, 5, &[writes(DATA, 512)]), 0, "a read has nothing to do with it");
    assert_eq!(rig.ask(4, 0, &[]), 1);
    assert_eq!((rig.ask(4, 0, &[]), rig.status()), (0, 15));

    // A driver that knows no flush hears it from its next write, which is on the disk when it is done.
    rig.start_with(rig.offered() & !(1 << 9));
    rig.fill(DATA, &[0xbb; 512]);
    image.wrote(0, 512);
    image.sync_by(broken).unwrap_err();
    assert_eq!(rig.ask(1, 7, &[reads(DATA, 512)]), 1);
    assert_eq!(rig.ask(1, 7, &[reads(DATA, 512)]), 0);
    let mut found = [0; 512];
    file.as_file().read_exact_at(&mut found, 7 * 512).unwrap();
    assert_eq!(found, [0xbb; 512]);
    image.sync_by(|_| panic!("it was not on the disk")).unwrap();
}

/// Calls `act` while the disk takes its time with the image.
fn while_busy(image: &DiskImage, act: impl FnOnce()) {
    let (begins, ends) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            image.sync_by(|_| {
                begins.wait();
                ends.wait();
                Ok(())
            })
        });
        begins.wait();
        act();
        ends.wait();
    });
}

#[test]
fn a_flush_under_way_holds_no_pause_up_and_is_asked_again_where_the_guest_goes_on() {
    let file = image();
    let image = open(file.path(), false);
    let source = over(&image);
    let mut its_thread = Thread::start(Arc::clone(&source.device)).unwrap();
    while_busy(&image, || {
        let users = Arc::strong_count(&image);
        source.ask_for(4, 0, &[]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Arc::strong_count(&image) == users {
            assert!(Instant::now() < deadline, "the device's thread does not wait for the disk");
            std::thread::yield_now();
        }
        its_thread.quiesce().unwrap();
        let Saved::Section(section) = its_thread.save().unwrap() else { panic!("nothing is saved") };
        let target = Rig::new(Block::new(open(file.path(), false), 3), source.memory.clone());
        target.device.restore(&section).unwrap();
        target.device.resume().unwrap();
        target.device.turn();
        assert_eq!((target.used(0), target.bytes(STATUS, 1)), (vec![(0, 1)], vec![0]));
        // All is as it was when the guest was paused.
        let [_, _, used] = Rig::<Block>::rings(0);
        source.memory.write_obj(0_u16, GuestAddress(used + 2)).unwrap();
    });
    its_thread.resume().unwrap();
    wait_for(&source, 1);
    assert_eq!(source.bytes(STATUS, 1), [0]);
}

#[test]
fn a_reset_in_the_middle_of_a_flush_forgets_it() {
    let file = image();
    let image = open(file.path(), false);
    let rig = over(&image);
    let thread = Thread::start(Arc::clone(&rig.device)).unwrap();
    while_busy(&image, || {
        rig.ask_for(4, 0, &[]);
        rig.start();
        assert_eq!(rig.used(0), []);
    });
    rig.ask_for(0, 5, &[writes(DATA, 512)]);
    wait_for(&rig, 1);
    assert_eq!((rig.used(0), rig.bytes(DATA, 512)), (vec![(0, 513)], vec![5; 512]));
    drop(thread);
}

#[test]
fn a_request_that_takes_long_is_given_up_for_a_pause_and_done_as_a_whole_later() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let rig = rig(file.path(), false);
    let was_given_up = (0..200).any(|_| {
        rig.start();
        let part = 0xc_0000;
        let data: Vec<Buffer> = (0..14).map(|_| writes(0x4_0000, part)).collect();
        rig.fill(0x4_0000, &[0xff]);
        rig.request_of(&data);
        std::thread::scope(|scope| {
            scope.spawn(|| rig.device.turn());
            while rig.bytes(0x4_0000, 1) == [0xff] && rig.used(0).is_empty() {
                std::thread::yield_now();
            }
            rig.device.quiesce().unwrap();
        });
        let was_given_up = rig.used(0).is_empty();
        rig.device.resume().unwrap();
        rig.device.turn();
        assert_eq!(rig.used(0), [(0, 14 * part + 1)]);
        was_given_up
    });
    assert!(was_given_up, "no pause ever came in the middle of a request");
}

#[test]
fn a_device_that_runs_saves_nothing_rather_than_what_is_wrong_in_a_moment() {
    let file = image();
    let rig = rig(file.path(), false);
    let error = rig.device.save().unwrap_err().to_string();
    assert!(error.contains("make it quiet first"), "{error}");
    rig.device.quiesce().unwrap();
    rig.device.save().unwrap();
}

#[test]
fn a_state_that_leaves_the_guest_without_answers_or_reaches_outside_its_memory_is_refused() {
    let file = image();
    let source = rig(file.path(), false);
    source.start();
    assert_eq!(source.ask(0, 5, &[writes(DATA, 512)]), 0);
    source.device.quiesce().unwrap();
    let Saved::Section(section) = source.device.save().unwrap() else { panic!("nothing is saved") };
    let refused = |change: fn(&mut VirtioTransport)| {
        let mut state: VirtioBlock = section.read().unwrap();
        change(&mut state.transport);
        let target = Rig::new(Block::new(open(file.path(), false), 3), memory());
        let section = Section::of(&state, 0, None).unwrap();
        let refused = target.device.restore(&section).map(|()| String::new());
        refused.unwrap_or_else(|error| {
            std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
        })
    };
    assert_eq!(refused(|_| {}), "");
    for (change, word) in [
        (
            (|it| it.queues[0].next_available += 1) as fn(&mut VirtioTransport),
            "in the middle of a request (2 taken, 1",
        ),
        (|it| it.queues[0].used = MEMORY as u64 - 8, "used ring: 0x"),
        (|it| it.queues[0].descriptors = u64::MAX - 15, "descriptor table: 0x"),
        (|it| it.queues[0].size = 24, "a queue of 24 entries"),
        (|it| it.queues[0].size_max = 512, "a queue of 512 entries"),
        (|it| it.queues.clear(), "has 0 queues"),
        (|it| it.offered_features |= 1 << 40, "was offered the features 0x10000000000"),
        (|it| it.accepted_features |= 1 << 40, "features that were not offered"),
        (|it| it.status = 7, "features that were not offered"),
        (|it| it.status |= 16, "there is no status"),
        (|it| it.interrupts = 4, "there is no interrupt"),
    ] {
        let error = refused(change);
        assert!(error.contains(word), "{error}");
    }
}
