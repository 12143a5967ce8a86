//! Providing guest memory before it is needed: [`GuestRam::populate`].
//!
//! A page that nobody has touched costs a fault at its first write: on a target in the middle of
//! receiving, or while the guest waits. Populating takes that out of the way, in large steps and on
//! several threads.
//!
//! Facts from madvise(2): `MADV_POPULATE_WRITE` (since Linux 5.14) makes pages writable as a write
//! would, without writing; an older kernel says EINVAL. There a page is provided by a compare and
//! exchange of one byte with itself: one atomic access that changes nothing, whoever writes meanwhile.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::host::Page;
use crate::ram::Part;
use crate::{GuestRam, PAGE_SIZE, PageRange, RamError};

/// Pages that a thread populates at a time: 16 MiB.
const STEP_PAGES: u64 = 4096;

/// Memory for which one more thread is worth its start: 64 MiB.
const PAGES_PER_THREAD: usize = 16 * 1024;

/// More threads only wait for each other at the kernel's locks.
const THREADS_MAX: usize = 8;

impl GuestRam {
    /// Makes the host provide these pages, without changing what they hold: afterwards a write to them
    /// does not fault. Sound while the guest runs. Uses as many threads as the pages and the
    /// host's processors are worth, at most eight.
    ///
    /// On an error some pages may have been provided.
    pub fn populate(&self, ranges: &[PageRange]) -> Result<(), RamError> {
        let pages = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.count));
        let worth = usize::try_from(pages).unwrap_or(usize::MAX) / PAGES_PER_THREAD;
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = worth.clamp(1, processors.min(THREADS_MAX));
        self.populate_on(ranges, NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN))
    }

    /// The same on so many threads, the calling one among them.
    pub fn populate_on(&self, ranges: &[PageRange], threads: NonZeroUsize) -> Result<(), RamError> {
        let mut mapped = Vec::with_capacity(ranges.len());
        for &range in ranges {
            // What lies in a file needs no memory.
            if let Part::Memory(_) = self.part(range)? {
                mapped.push(range);
            }
        }
        let steps: Vec<PageRange> = mapped.into_iter().flat_map(steps).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(&step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.populate_step(step)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            // A thread that cannot be had is no error: the others do its part.
            let spawn = |_| thread::Builder::new().name("populate".into()).spawn_scoped(scope, work).ok();
            let helpers: Vec<_> = (1..threads.get().min(steps.len())).filter_map(spawn).collect();
            let own = work();
            helpers.into_iter().filter_map(|helper| helper.join().ok()).fold(own, Result::and)
        })
    }

    fn populate_step(&self, range: PageRange) -> Result<(), RamError> {
        let window = self.pages(range)?;
        match window.populate() {
            // What the kernel does not know, or not for this kind of mapping.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                window.pages().for_each(Page::touch);
                Ok(())
            }
            other => other.map_err(|source: io::Error| RamError::Populate { range, source }),
        }
    }
}

/// The range in steps; they begin at multiples of a step, so that two threads never share a huge page.
fn steps(range: PageRange) -> impl Iterator<Item = PageRange> {
    let end = range.first + range.count;
    let mut next = range.first;
    std::iter::from_fn(move || {
        let first = next;
        next = end.min((first / STEP_PAGES + 1) * STEP_PAGES);
        (first < end).then(|| PageRange { first, count: next - first })
    })
}

const _: () = assert!(STEP_PAGES * PAGE_SIZE == 16 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, Span};

    fn ram(pages: u64) -> GuestRam {
        GuestRam::anonymous(&Layout::new(vec![Span { start: 0, length: pages * PAGE_SIZE }]).unwrap())
            .unwrap()
    }

    /// How many of the first pages the kernel provides.
    fn provided_pages(ram: &GuestRam, pages: u64) -> u64 {
        ram.pages(PageRange { first: 0, count: pages }).unwrap().provided()
    }

    #[test]
    fn steps_cover_a_range_and_begin_at_multiples() {
        for (first, count) in [(0, 1), (5, STEP_PAGES), (STEP_PAGES, 3 * STEP_PAGES), (4095, 2), (7, 0)] {
            let all: Vec<_> = steps(PageRange { first, count }).collect();
            assert_eq!(all.iter().map(|step| step.count).sum::<u64>(), count);
            assert!(all.iter().skip(1).all(|step| step.first % STEP_PAGES == 0));
        }
    }

    #[test]
    fn populated_pages_are_provided_and_hold_what_they_held() {
        for threads in [1, 2, 5] {
            let ram = ram(3 * STEP_PAGES);
            ram.write(5000 * PAGE_SIZE + 9, b"kept").unwrap();
            let ranges =
                [PageRange { first: 16, count: 100 }, PageRange { first: 4000, count: STEP_PAGES + 1000 }];
            ram.populate_on(&ranges, NonZeroUsize::new(threads).unwrap()).unwrap();
            assert!(provided_pages(&ram, 3 * STEP_PAGES) >= STEP_PAGES + 1100);
            assert!(provided_pages(&ram, 16) == 0, "and no others");
            let mut bytes = [0; 5];
            ram.read(5000 * PAGE_SIZE + 9, &mut bytes).unwrap();
            assert_eq!(&bytes, b"kept\0");
        }
    }

    #[test]
    fn touching_provides_a_page_and_loses_no_write_of_another_thread() {
        let ram = ram(64);
        let all = PageRange { first: 0, count: 64 };
        ram.pages(all).unwrap().pages().for_each(Page::touch);
        assert_eq!(provided_pages(&ram, 64), 64);
        thread::scope(|scope| {
            let writer = ram.clone();
            let counting = scope.spawn(move || {
                for value in 1..=20_000_u32 {
                    writer.write(0, &value.to_le_bytes()).unwrap();
                    let mut back = [0; 4];
                    writer.read(0, &mut back).unwrap();
                    assert_eq!(u32::from_le_bytes(back), value, "a write was undone");
                }
            });
            while !counting.is_finished() {
                ram.pages(PageRange { first: 0, count: 1 }).unwrap().pages().for_each(Page::touch);
            }
        });
    }

    #[test]
    fn pages_outside_are_refused_before_any_is_provided() {
        let ram = ram(64);
        let ranges = [PageRange { first: 0, count: 64 }, PageRange { first: 63, count: 2 }];
        assert!(matches!(ram.populate(&ranges), Err(RamError::OutsidePages { .. })));
        assert_eq!(provided_pages(&ram, 64), 0);
        ram.populate(&[]).unwrap();
    }
}
