//! What moving a guest's memory costs, piece by piece, each beside this machine's memcpy limit
//! in the same group: `cargo bench -p ferry-memory`.
//!
//! The memory is larger than the processor's caches. `memcpy` copies as many bytes between two
//! buffers of the process; work that only reads, as classification, may be faster than it.

#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ferry_memory::{
    Classified, GuestRam, Layout, PAGE_SIZE, PageRange, PageSet, Span, receive_pages, send_pages,
};

const PAGES: u64 = 1 << 16;
const BYTES: u64 = PAGES * PAGE_SIZE;
const ALL: PageRange = PageRange { first: 0, count: PAGES };
/// Pages of one message, as an engine sends them.
const CHUNK_PAGES: u64 = 512;

fn layout() -> Layout {
    Layout::new(vec![Span { start: 0, length: BYTES }]).expect("one region of whole pages")
}

/// Memory that is there (every page touched) and holds `word(index)` in every page's words.
fn ram(word: impl Fn(u64) -> u64) -> GuestRam {
    let ram = GuestRam::anonymous(&layout()).expect("memory for the benchmark");
    for page in 0..PAGES {
        let bytes: Vec<u8> = (0..512).flat_map(|at| word(page * 512 + at).to_le_bytes()).collect();
        ram.write(page * PAGE_SIZE, &bytes).expect("inside");
    }
    ram
}

/// Every word different, none zero: the finalizer of splitmix64.
fn random(index: u64) -> u64 {
    let mut word = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

struct Memcpy {
    from: Vec<u8>,
    into: Vec<u8>,
}

impl Memcpy {
    fn new() -> Self {
        let bytes = usize::try_from(BYTES).expect("a 64-bit machine");
        Self { from: vec![1; bytes], into: vec![2; bytes] }
    }

    fn bench(&mut self, group: &mut BenchmarkGroup<'_, WallTime>) {
        group.bench_function("memcpy (limit)", |b| {
            b.iter(|| black_box(&mut self.into).copy_from_slice(black_box(&self.from)));
        });
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str, bytes: u64) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(150))
        .measurement_time(Duration::from_millis(700))
        .throughput(Throughput::Bytes(bytes));
    group
}

fn reading(criterion: &mut Criterion, memcpy: &mut Memcpy, zero: &GuestRam, data: &GuestRam) {
    let mut classify = group(criterion, "classify", BYTES);
    let mut found = Classified::new();
    for (name, ram) in [("zero", zero), ("random", data)] {
        classify.bench_function(name, |b| {
            b.iter(|| {
                found.clear();
                ram.classify(black_box(ALL), &mut found).expect("inside");
                found.zero_pages()
            });
        });
    }
    memcpy.bench(&mut classify);
    classify.finish();

    let mut digest = group(criterion, "digest", BYTES);
    digest.bench_function("checksum", |b| b.iter(|| data.checksum(black_box(&[ALL])).expect("inside")));
    digest.bench_function("hash", |b| b.iter(|| black_box(data).hash()));
    memcpy.bench(&mut digest);
    digest.finish();
}

/// Throughput is that of the memory that the sets stand for, so it can be held against memcpy.
fn page_sets(criterion: &mut Criterion, memcpy: &mut Memcpy) {
    let mut group = group(criterion, "page set", BYTES);
    let mut sparse = PageSet::empty(&layout());
    let mut scattered = PageSet::empty(&layout());
    for page in 0..PAGES {
        let range = PageRange { first: page, count: 1 };
        if page % 1000 == 0 {
            sparse.insert(range);
        }
        if random(page).is_multiple_of(3) {
            scattered.insert(range);
        }
    }
    let full = PageSet::full(&layout());
    for (name, set) in [("sparse", sparse), ("scattered", scattered), ("full in chunks", full)] {
        group.bench_function(name, |b| b.iter(|| black_box(&set).chunks(CHUNK_PAGES).count()));
    }
    memcpy.bench(&mut group);
    group.finish();
}

/// All data pages over a socket pair, in messages, received by a second thread.
fn transfer(criterion: &mut Criterion, memcpy: &mut Memcpy, data: &GuestRam, target: &GuestRam) {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let chunks: Vec<PageRange> = PageSet::full(&layout()).chunks(CHUNK_PAGES).collect();
    let (arrived, arrivals) = mpsc::channel();
    let mut group = group(criterion, "send and receive", BYTES);
    thread::scope(|scope| {
        let chunks = &chunks;
        scope.spawn(move || {
            // The sender's end closes when the measurement is over.
            while chunks.iter().all(|&chunk| receive_pages(target, far.as_fd(), &[chunk]).is_ok()) {
                if arrived.send(()).is_err() {
                    return;
                }
            }
        });
        group.bench_function("socket pair", |b| {
            b.iter(|| {
                for &chunk in chunks {
                    send_pages(data, near.as_fd(), b"", &[chunk], b"").expect("the receiver reads");
                }
                arrivals.recv().expect("all pages arrive");
            });
        });
        drop(near);
    });
    assert_eq!(data.hash().ok(), target.hash().ok(), "what was measured was right");
    memcpy.bench(&mut group);
    group.finish();
}

fn memory(criterion: &mut Criterion) {
    let mut memcpy = Memcpy::new();
    let data = ram(random);
    // Serves as zero memory first and takes the pages later.
    let target = ram(|_| 0);
    reading(criterion, &mut memcpy, &target, &data);
    page_sets(criterion, &mut memcpy);
    transfer(criterion, &mut memcpy, &data, &target);
}

criterion_group!(benches, memory);
criterion_main!(benches);
