//! Pages over real descriptors: sockets with tiny buffers, pipes, files, streams that are cut or
//! stand still, memory that is written while it is sent, memory that cannot be reached.

#![expect(clippy::unwrap_used, reason = "the tests' helpers panic as the tests do")]

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferry_memory::{
    GuestRam, IoError, Layout, PAGE_SIZE, PageRange, RamError, Span, receive_pages, send_pages,
};
use proptest::prelude::*;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Frames 0..600 and, touching them, 600..1200; a hole; 5000..5100.
const REGIONS: [(u64, u64); 3] = [(0, 600), (600, 600), (5000, 100)];
const PATIENCE: Duration = Duration::from_millis(50);

fn layout() -> Layout {
    let spans = REGIONS.map(|(first, count)| Span { start: first * PAGE_SIZE, length: count * PAGE_SIZE });
    Layout::new(spans.to_vec()).unwrap()
}

fn empty() -> GuestRam {
    GuestRam::anonymous(&layout()).unwrap()
}

/// Every page holds its own number, in every word.
fn patterned() -> GuestRam {
    let ram = empty();
    for range in layout().ranges() {
        for page in range.first..range.first + range.count {
            ram.write(page * PAGE_SIZE, &page_of(page)).unwrap();
        }
    }
    ram
}

fn page_of(number: u64) -> Vec<u8> {
    (0..512u64).flat_map(|word| ((number << 32) | (word + 1)).to_le_bytes()).collect()
}

fn bytes(ram: &GuestRam, runs: &[PageRange]) -> Vec<u8> {
    let run = |run: &PageRange| {
        let mut bytes = vec![0; usize::try_from(run.count * PAGE_SIZE).unwrap()];
        ram.read(run.first * PAGE_SIZE, &mut bytes).unwrap();
        bytes
    };
    runs.iter().flat_map(run).collect()
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange { first, count }
}

fn pair(buffer_bytes: usize) -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    for end in [&near, &far] {
        set_socket_send_buffer_size(end, buffer_bytes).unwrap();
        set_socket_recv_buffer_size(end, buffer_bytes).unwrap();
    }
    (near, far)
}

fn runs() -> impl Strategy<Value = Vec<PageRange>> {
    let run = (0..3usize, any::<prop::sample::Index>(), 1..40u64).prop_map(|(region, at, count)| {
        let (first, pages) = REGIONS[region];
        let at = at.index(usize::try_from(pages).unwrap()) as u64;
        range(first + at, count.min(pages - at))
    });
    prop::collection::vec(run, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_sent_arrives_whatever_the_buffers(
        runs in runs(),
        head in prop::collection::vec(any::<u8>(), 0..64),
        tail in prop::collection::vec(any::<u8>(), 0..64),
        buffer_bytes in prop_oneof![Just(1usize), 4096..20_000usize, Just(1 << 20)],
    ) {
        let (source, target) = (patterned(), empty());
        let (near, mut far) = pair(buffer_bytes);
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
        prop_assert!(bytes(&target, &runs) == bytes(&source, &runs));
        // Nothing else arrived anywhere.
        let sent: std::collections::BTreeSet<u64> = runs.iter().flat_map(|run| run.first..run.first + run.count).collect();
        for page in layout().ranges().flat_map(|range| range.first..range.first + range.count) {
            let found = bytes(&target, &[range(page, 1)]);
            let expected = if sent.contains(&page) { page_of(page) } else { vec![0; 4096] };
            prop_assert!(found == expected, "frame {}", page);
        }
    }
}

#[test]
fn more_runs_than_one_call_takes_arrive_in_order() {
    let (source, target) = (patterned(), empty());
    let runs: Vec<_> = (0..1200).rev().map(|page| range(page, 1)).chain([range(5000, 100)]).collect();
    let (near, far) = pair(1 << 16);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_pages(&source, near.as_fd(), b"", &runs, b""));
        receive_pages(&target, far.as_fd(), &runs).unwrap();
        sender.join().unwrap().unwrap();
    });
    assert_eq!(source.hash().unwrap(), target.hash().unwrap());
}

#[test]
fn a_reader_that_stands_still_times_the_sender_out_with_the_bytes_that_left() {
    let source = patterned();
    let (near, mut far) = pair(20_000);
    near.set_write_timeout(Some(PATIENCE)).unwrap();
    let started = Instant::now();
    let error = send_pages(&source, near.as_fd(), b"head", &[range(0, 600)], b"tail").unwrap_err();
    let waited = started.elapsed();
    let IoError::TimedOut { moved, expected } = error else { panic!("{error:?}") };
    assert_eq!(expected, 600 * PAGE_SIZE + 8);
    assert!(moved > 4 && moved < expected, "{moved}");
    assert!(waited >= PATIENCE && waited < Duration::from_secs(5), "{waited:?}");
    drop(near);
    let mut left = Vec::new();
    far.read_to_end(&mut left).unwrap();
    assert_eq!(left.len() as u64, moved, "what it says left did leave");
    assert!(left[4..] == bytes(&source, &[range(0, 600)])[..left.len() - 4]);
}

#[test]
fn a_sender_that_pauses_within_the_time_allowed_is_waited_for() {
    // Each stop makes the sender's call end part of the way, at its own timeout.
    let (source, target) = (patterned(), empty());
    let (near, far) = pair(8192);
    near.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    let runs = [range(0, 600)];
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_pages(&target, far.as_fd(), &runs));
        // A timeout without progress may still hit on a busy machine; then the stream is cut.
        match send_pages(&source, near.as_fd(), b"", &runs, b"") {
            Ok(()) => {
                receiver.join().unwrap().unwrap();
                assert!(bytes(&target, &runs) == bytes(&source, &runs));
            }
            Err(IoError::TimedOut { moved, .. }) => {
                near.shutdown(std::net::Shutdown::Both).unwrap();
                let error = receiver.join().unwrap().unwrap_err();
                assert!(
                    matches!(error, IoError::Ended { moved: arrived, .. } if arrived == moved),
                    "{error:?}"
                );
            }
            Err(error) => panic!("{error:?}"),
        }
    });
}

#[test]
fn a_sender_that_stands_still_times_the_receiver_out() {
    let (mut near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    near.write_all(&[7; 5000]).unwrap();
    let target = empty();
    let error = receive_pages(&target, far.as_fd(), &[range(5, 3)]).unwrap_err();
    assert!(matches!(error, IoError::TimedOut { moved: 5000, expected: 12_288 }), "{error:?}");
    assert!(bytes(&target, &[range(5, 2)])[..5000] == [7; 5000], "what arrived is there");
}

#[test]
fn a_descriptor_that_does_not_block_times_out_at_once() {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let error = receive_pages(&empty(), far.as_fd(), &[range(0, 1)]).unwrap_err();
    assert!(matches!(error, IoError::TimedOut { moved: 0, expected: 4096 }), "{error:?}");
    near.set_nonblocking(true).unwrap();
    let error =
        send_pages(&patterned(), near.as_fd(), b"", &[range(0, 600), range(600, 600)], b"").unwrap_err();
    assert!(matches!(error, IoError::TimedOut { moved: 1.., .. }), "{error:?}");
}

#[test]
fn a_stream_that_is_cut_says_how_far_it_came() {
    for cut in [0, 1, 4095, 4096, 10_000] {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&vec![1; cut]).unwrap();
        drop(near);
        let error = receive_pages(&empty(), far.as_fd(), &[range(3, 1), range(700, 2)]).unwrap_err();
        assert!(
            matches!(error, IoError::Ended { moved, expected: 12_288 } if moved == cut as u64),
            "{cut}: {error:?}"
        );
    }
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let error = send_pages(&patterned(), near.as_fd(), b"", &[range(0, 1)], b"").unwrap_err();
    let IoError::Os { moved: 0, source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn ranges_outside_memory_are_refused_before_a_byte_moves() {
    let ram = patterned();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    for outside in [range(599, 2), range(1199, 2), range(4999, 1), range(0, 0), range(u64::MAX, 2)] {
        let runs = [range(0, 1), outside];
        let error = send_pages(&ram, near.as_fd(), b"head", &runs, b"tail").unwrap_err();
        assert!(matches!(error, IoError::Outside(RamError::OutsidePages { range }) if range == outside));
        near.write_all(b"kept").unwrap();
        let error = receive_pages(&ram, far.as_fd(), &runs).unwrap_err();
        assert!(matches!(error, IoError::Outside(RamError::OutsidePages { range }) if range == outside));
        let mut kept = [0; 4];
        far.read_exact(&mut kept).unwrap();
        assert_eq!(&kept, b"kept", "neither call may touch the stream");
    }
}

#[test]
fn files_and_pipes_take_pages_too() {
    let (source, target) = (patterned(), empty());
    let runs = [range(599, 1), range(600, 300), range(5000, 100)];
    let mut file = tempfile::tempfile().unwrap();
    send_pages(&source, file.as_fd(), b"head", &runs, b"tail").unwrap();
    file.seek(io::SeekFrom::Start(4)).unwrap();
    receive_pages(&target, file.as_fd(), &runs).unwrap();
    assert!(bytes(&target, &runs) == bytes(&source, &runs));
    let mut tail = String::new();
    file.read_to_string(&mut tail).unwrap();
    assert_eq!(tail, "tail");

    let target = empty();
    let (reader, writer) = io::pipe().unwrap();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_pages(&source, writer.as_fd(), b"", &runs, b""));
        receive_pages(&target, reader.as_fd(), &runs).unwrap();
        sender.join().unwrap().unwrap();
    });
    assert!(bytes(&target, &runs) == bytes(&source, &runs));
    // A descriptor that cannot be written says so.
    let read_only = OwnedFd::from(reader);
    assert!(matches!(
        send_pages(&source, read_only.as_fd(), b"", &runs, b""),
        Err(IoError::Os { moved: 0, .. })
    ));
}

#[test]
fn memory_that_cannot_be_reached_is_its_own_kind() {
    let reachable = |prot| {
        let mapping = MmapRegionBuilder::new(0x4000)
            .with_mmap_prot(prot)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .unwrap();
        let region = GuestRegionMmap::<()>::new(mapping, GuestAddress(0)).unwrap();
        GuestRam::new(Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())).unwrap()
    };
    let (mut near, far) = UnixStream::pair().unwrap();
    let error = send_pages(&reachable(libc::PROT_NONE), near.as_fd(), b"", &[range(1, 2)], b"").unwrap_err();
    assert!(matches!(error, IoError::Inaccessible { moved: 0, expected: 8192 }), "{error:?}");
    near.write_all(&[1; 8192]).unwrap();
    let error = receive_pages(&reachable(libc::PROT_READ), far.as_fd(), &[range(1, 2)]).unwrap_err();
    assert!(matches!(error, IoError::Inaccessible { moved: 0, expected: 8192 }), "{error:?}");
}

/// A writer goes over the pages with rising numbers, one in every word, while they are sent again
/// and again. Every word that arrives must be one that the writer wrote, and once it is still, the
/// next pass brings exactly what it left.
#[test]
fn pages_are_sent_while_they_are_written() {
    let (source, target) = (empty(), empty());
    let (near, far) = pair(1 << 18);
    let runs = [range(0, 64)];
    let stop = AtomicBool::new(false);
    let marked = |round: u64| ((0x5eed_u64 << 48) | round).to_le_bytes().repeat(512);
    source.write(0, &marked(0).repeat(64)).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let page = marked(round);
                for number in 0..64 {
                    source.write(number * PAGE_SIZE, &page).unwrap();
                }
            }
            round
        });
        let pass = || {
            thread::scope(|scope| {
                let sender = scope.spawn(|| send_pages(&source, near.as_fd(), b"", &runs, b""));
                receive_pages(&target, far.as_fd(), &runs).unwrap();
                sender.join().unwrap().unwrap();
            });
        };
        for _ in 0..100 {
            pass();
            for word in bytes(&target, &runs).as_chunks::<8>().0 {
                let word = u64::from_le_bytes(*word);
                assert!(word >> 48 == 0x5eed, "{word:#x} was never written");
            }
        }
        stop.store(true, Ordering::Relaxed);
        let last = writer.join().unwrap();
        assert!(last > 1, "the writer ran meanwhile");
        pass();
        assert!(bytes(&target, &[range(63, 1)]) == marked(last));
        assert_eq!(source.checksum(&runs).unwrap(), target.checksum(&runs).unwrap());
    });
}
