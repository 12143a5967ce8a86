//! Files as regions beside memory: everything that is done with pages gives what it gives with memory that holds the
//! same bytes, and what fails names the file.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use ferry_memory::{
    Classified, FileRegion, GuestRam, IoError, Layout, PAGE_SIZE, PageRange, PageSet, RamError, Span,
    receive_pages, send_pages,
};
use proptest::prelude::*;

/// Where images begin.
const IMAGES: u64 = 1 << 52;

/// Bytes of the images: one of whole pages, one that ends with a sector.
const BYTES: [u64; 2] = [300 * PAGE_SIZE, 70 * PAGE_SIZE + 512];

/// Frames 0..40, 40..60 and two images.
const REGIONS: [(u64, u64); 4] =
    [(0, 40), (40, 20), (IMAGES / PAGE_SIZE, 300), ((IMAGES + (1 << 44)) / PAGE_SIZE, 71)];

fn layout() -> Layout {
    let span = |(first, count)| Span { start: first * PAGE_SIZE, length: count * PAGE_SIZE };
    Layout::new(REGIONS.map(span).to_vec()).unwrap()
}

fn region(number: u64, bytes: u64, file: File) -> FileRegion {
    FileRegion {
        start: IMAGES + (number << 44),
        bytes,
        file: Arc::new(file),
        name: format!("image {number}"),
    }
}

/// Memory and two new images, and what shows the files.
fn mixed() -> (GuestRam, [File; 2]) {
    let memory = Layout::new(layout().spans()[..2].to_vec()).unwrap();
    let files = BYTES.map(|bytes| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    });
    let regions = files.iter().zip(0..).zip(BYTES);
    let regions = regions.map(|((file, number), bytes)| region(number, bytes, file.try_clone().unwrap()));
    let ram = GuestRam::anonymous(&memory).unwrap().with_files(regions.collect()).unwrap();
    assert_eq!(ram.layout(), &layout());
    (ram, files)
}

/// One image of a file as it is.
fn over(file: File, bytes: u64) -> GuestRam {
    let memory = Layout::new(vec![Span { start: 0, length: 4 * PAGE_SIZE }]).unwrap();
    GuestRam::anonymous(&memory).unwrap().with_files(vec![region(0, bytes, file)]).unwrap()
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange { first, count }
}

fn all_bytes(ram: &GuestRam) -> Vec<Vec<u8>> {
    let read = |span: &Span| {
        let mut bytes = vec![0; usize::try_from(span.length).unwrap()];
        ram.read(span.start, &mut bytes).unwrap();
        bytes
    };
    ram.layout().spans().iter().map(read).collect()
}

/// Bytes at a place, some of which may be zero.
#[derive(Debug, Clone)]
struct Write {
    address: u64,
    bytes: Vec<u8>,
}

/// Writes at any alignment, none over an image's end.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (0..4usize, any::<prop::sample::Index>(), 1..20_000usize, 0..3u8);
    let write = write.prop_map(|(region, at, length, value)| {
        let (first, count) = REGIONS[region];
        let end = if region == 3 { BYTES[1] } else { count * PAGE_SIZE };
        let at = at.index(usize::try_from(end).unwrap()) as u64;
        let length = length.min(usize::try_from(end - at).unwrap());
        Write { address: first * PAGE_SIZE + at, bytes: vec![value; length] }
    });
    prop::collection::vec(write, 0..16)
}

fn runs() -> impl Strategy<Value = Vec<PageRange>> {
    let run = (0..4usize, any::<prop::sample::Index>(), 1..150u64).prop_map(|(region, at, count)| {
        let (first, pages) = REGIONS[region];
        let at = at.index(usize::try_from(pages).unwrap()) as u64;
        range(first + at, count.min(pages - at))
    });
    prop::collection::vec(run, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn files_are_as_memory_that_holds_the_same(writes in writes(), runs in runs()) {
        let ((ram, files), model) = (mixed(), GuestRam::anonymous(&layout()).unwrap());
        for Write { address, bytes } in &writes {
            ram.write(*address, bytes).unwrap();
            model.write(*address, bytes).unwrap();
        }
        prop_assert!(all_bytes(&ram) == all_bytes(&model));
        prop_assert_eq!(ram.hash().unwrap(), model.hash().unwrap());
        prop_assert_eq!(ram.checksum(&runs).unwrap(), model.checksum(&runs).unwrap());
        let classified = |ram: &GuestRam| {
            let mut found = Classified::new();
            for &run in &runs {
                ram.classify(run, &mut found).unwrap();
            }
            found
        };
        prop_assert_eq!(classified(&ram), classified(&model));
        ram.populate(&runs).unwrap();

        // Every page that holds something is among those that may.
        let mut stored = PageSet::empty(ram.layout());
        ram.add_stored(&mut stored);
        let mut found = Classified::new();
        layout().ranges().skip(2).for_each(|run| model.classify(run, &mut found).unwrap());
        for page in found.data_runs().iter().flat_map(|run| run.first..run.first + run.count) {
            prop_assert!(stored.contains(page), "frame {:#x}", page);
        }

        for &run in &runs {
            ram.zero(run).unwrap();
            model.zero(run).unwrap();
        }
        prop_assert!(all_bytes(&ram) == all_bytes(&model));
        ram.sync().unwrap();
        for (file, bytes) in files.iter().zip(BYTES) {
            prop_assert_eq!(file.metadata().unwrap().len(), bytes, "no file changes its length");
        }
    }

    #[test]
    fn what_is_sent_arrives_wherever_it_lies(
        writes in writes(),
        runs in runs(),
        head in prop::collection::vec(any::<u8>(), 0..64),
        tail in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let ((source, _), (target, _)) = (mixed(), mixed());
        let model = GuestRam::anonymous(&layout()).unwrap();
        for Write { address, bytes } in &writes {
            source.write(*address, bytes).unwrap();
        }
        for &run in &runs {
            let mut bytes = vec![0; usize::try_from(run.count * PAGE_SIZE).unwrap()];
            source.read(run.first * PAGE_SIZE, &mut bytes).unwrap();
            model.write(run.first * PAGE_SIZE, &bytes).unwrap();
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let sender = scope.spawn(|| send_pages(&source, near.as_fd(), &head, &runs, &tail));
            let mut found = vec![0; head.len()];
            far.read_exact(&mut found).unwrap();
            assert_eq!(found, head);
            receive_pages(&target, far.as_fd(), &runs).unwrap();
            let mut found = vec![0; tail.len()];
            far.read_exact(&mut found).unwrap();
            assert_eq!(found, tail);
            sender.join().unwrap().unwrap();
        });
        prop_assert!(all_bytes(&target) == all_bytes(&model));
    }
}

#[test]
fn images_keep_their_holes() {
    let (ram, [file, _]) = mixed();
    let blocks = || file.metadata().unwrap().blocks() * 512;
    ram.write(IMAGES + 100 * PAGE_SIZE + 7, &[1; 5]).unwrap();
    ram.write(IMAGES + 200 * PAGE_SIZE, &[1; 8192]).unwrap();
    ram.sync().unwrap();
    let held = blocks();
    assert!(held < BYTES[0] / 4, "{held} bytes are held: this file system has no sparse files");
    let mut stored = PageSet::empty(ram.layout());
    ram.add_stored(&mut stored);
    let first = IMAGES / PAGE_SIZE;
    assert!(stored.contains(first + 100) && stored.contains(first + 201) && stored.count() < 40);
    ram.zero(range(first, 300)).unwrap();
    assert!(blocks() < held, "a hole was made");
    stored.clear();
    ram.add_stored(&mut stored);
    assert!(stored.is_empty(), "{stored:?}");
}

#[test]
fn what_a_last_page_has_behind_the_image_is_zero() {
    let (ram, [_, file]) = mixed();
    let last = IMAGES + (1 << 44) + 70 * PAGE_SIZE;
    ram.write(last, &[0xee; 4096]).unwrap();
    let mut page = [7; 4096];
    ram.read(last, &mut page).unwrap();
    assert!(page[..512].iter().all(|&byte| byte == 0xee) && page[512..].iter().all(|&byte| byte == 0));
    assert_eq!(file.metadata().unwrap().len(), BYTES[1]);
}

#[test]
fn regions_that_are_no_layout_are_refused() {
    let memory = GuestRam::anonymous(&Layout::new(vec![Span { start: 0, length: 4096 }]).unwrap()).unwrap();
    let file = || tempfile::tempfile().unwrap();
    let wrong = |regions: Vec<FileRegion>| memory.with_files(regions).map(drop).unwrap_err().to_string();
    assert!(wrong(vec![region(1, 4096, file()), region(0, 4096, file())]).contains("sorted"));
    assert!(wrong(vec![region(0, 0, file())]).contains("length zero"));
    assert!(wrong(vec![region(0, u64::MAX, file())]).contains("not aligned"));
    assert!(wrong(vec![FileRegion { start: 0, ..region(0, 4096, file()) }]).contains("overlaps"));
}

/// What an error says, with its causes.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Sends the first image's first pages to a handle and gives what it says.
fn receive(target: &GuestRam) -> IoError {
    let (source, _) = mixed();
    source.write(IMAGES, &[1; 8192]).unwrap();
    let runs = [range(0, 2), range(IMAGES / PAGE_SIZE, 2)];
    let (near, far) = UnixStream::pair().unwrap();
    send_pages(&source, near.as_fd(), b"", &runs, b"").unwrap();
    receive_pages(target, far.as_fd(), &runs).unwrap_err()
}

#[test]
fn a_full_disk_is_an_error_that_names_the_image() {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let ram = over(full, 1 << 20);
    let error = receive(&ram);
    let IoError::File { moved: 16384, expected: 16384, ref source } = error else { panic!("{error:?}") };
    let RamError::File { name, what: "written", offset: 0, source } = source else { panic!("{source:?}") };
    assert_eq!((name.as_str(), source.kind()), ("image 0", std::io::ErrorKind::StorageFull));
    assert!(
        told(&error).contains("image 0 cannot be written from byte 0 on: No space left"),
        "{}",
        told(&error)
    );
    assert!(matches!(ram.write(IMAGES, &[1]), Err(RamError::File { .. })));
}

#[test]
fn a_file_that_cannot_be_written_or_read_is_an_error_where_it_is_met() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    let read_only = over(File::open(&path).unwrap(), 1 << 20);
    assert!(matches!(receive(&read_only), IoError::File { .. }));
    assert!(matches!(
        read_only.zero(range(IMAGES / PAGE_SIZE, 1)),
        Err(RamError::File { what: "cleared", .. })
    ));

    let write_only = over(OpenOptions::new().write(true).open(&path).unwrap(), 1 << 20);
    let image = range(IMAGES / PAGE_SIZE, 256);
    let mut found = Classified::new();
    let failed =
        |result: Result<(), RamError>| assert!(matches!(result, Err(RamError::File { what: "read", .. })));
    failed(write_only.classify(image, &mut found));
    assert_eq!(found, Classified::new(), "nothing is told of a range that failed");
    failed(write_only.checksum(&[image]).map(drop));
    failed(write_only.hash().map(drop));
    let (near, _far) = UnixStream::pair().unwrap();
    let sent = send_pages(&write_only, near.as_fd(), b"head", &[range(0, 4), image], b"").unwrap_err();
    assert!(matches!(sent, IoError::File { moved: 16388, .. }), "{sent:?}");
    let mut all = PageSet::empty(write_only.layout());
    write_only.add_stored(&mut all);
    assert_eq!(all.count(), 0, "an empty file tells so, whoever has it open how");

    // Somebody cuts the image under the guest.
    let cut = over(OpenOptions::new().read(true).write(true).open(&path).unwrap(), 1 << 20);
    file.set_len(5000).unwrap();
    let error = told(&cut.read(IMAGES + 4096, &mut [0; 4096]).unwrap_err());
    assert!(error.contains("image 0 cannot be read from byte 4096 on: it has become shorter"), "{error}");
    cut.read(IMAGES, &mut [0; 4096]).unwrap();
    file.write_all_at(b"x", 0).unwrap();
}
