//! Guest memory as it lies in this process: every access to it by this process's own instructions.
//!
//! The guest, devices and other threads write while these functions read, and read while they
//! write. Therefore memory is touched only by relaxed atomic loads and stores, never through a
//! slice: of eight aligned bytes where the range allows, of single bytes at its edges. On the
//! processors this builds for, these are plain loads and stores that the compiler neither drops,
//! repeats nor joins. What is copied can be a mixture of old and new, word by word.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::PAGE_BYTES;

const WORD: usize = size_of::<u64>();
/// The step in which copies and searches go: a cache line.
const LINE: usize = 64;

/// The memory of one region; a copy is as good.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a `Host` is an address and a length; the memory behind it is only touched by atomic
// accesses and system calls, which any thread may do at any time.
unsafe impl Send for Host {}
// SAFETY: as above; nothing in a `Host` itself ever changes.
unsafe impl Sync for Host {}

impl Host {
    /// Takes `length` bytes of memory from `base` on.
    ///
    /// # Safety
    ///
    /// The bytes must stay mapped as long as the `Host` or a copy of its address is in use, and
    /// nobody may hold a Rust reference to them other than to atomics. `base` is aligned to a page.
    pub(crate) unsafe fn new(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length }
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.base.addr().get() as u64
    }

    /// A part of the memory, or `None` where it is not inside.
    pub(crate) fn window(&self, offset: usize, length: usize) -> Option<Window<'_>> {
        let end = offset.checked_add(length)?;
        // A wrapping addition needs no promise; the comparison makes it one inside the memory.
        let base = NonNull::new(self.base.as_ptr().wrapping_add(offset))?;
        (end <= self.length).then_some(Window { base, length, host: PhantomData })
    }
}

/// A part of a region's memory, all of it mapped.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    base: NonNull<u8>,
    length: usize,
    host: PhantomData<&'a Host>,
}

impl<'a> Window<'a> {
    /// The window as a system call takes it.
    pub(crate) fn iovec(self) -> libc::iovec {
        libc::iovec { iov_base: self.base.as_ptr().cast(), iov_len: self.length }
    }

    /// The whole pages of a window that starts at a page.
    pub(crate) fn pages(self) -> impl ExactSizeIterator<Item = Page<'a>> {
        debug_assert!(self.base.addr().get().is_multiple_of(PAGE_BYTES), "windows of pages start at a page");
        let base = self.base.as_ptr();
        (0..self.length / PAGE_BYTES)
            .map(move |page| Page { base: base.wrapping_add(page * PAGE_BYTES), host: PhantomData })
    }

    /// Makes the kernel provide every page of a window that starts at a page, as a write would.
    pub(crate) fn populate(self) -> io::Result<()> {
        loop {
            // SAFETY: the window is mapped; this advice changes no byte of it.
            let result =
                unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_POPULATE_WRITE) };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(error);
            }
        }
    }

    /// Pages of a window that starts at a page which the kernel provides now.
    #[cfg(test)]
    pub(crate) fn provided(self) -> u64 {
        let mut pages = vec![0_u8; self.length / PAGE_BYTES];
        // SAFETY: the window is mapped; the kernel writes one byte a page into `pages`.
        let result = unsafe { libc::mincore(self.base.as_ptr().cast(), self.length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().map(|page| u64::from(page & 1)).sum()
    }

    /// Copies from guest memory. `into` is as long as the window.
    pub(crate) fn copy_out(self, into: &mut [u8]) {
        debug_assert_eq!(into.len(), self.length);
        let (head, words, tail) = self.split();
        let (into_head, rest) = into.split_at_mut(head.length);
        let (into_words, into_tail) = rest.split_at_mut(words.length);
        let (lines, words) = words.split_at(words.length / LINE * LINE);
        let (into_lines, into_words) = into_words.split_at_mut(lines.length);
        head.bytes_out(into_head);
        lines.lines_out(into_lines);
        words.words_out(into_words);
        tail.bytes_out(into_tail);
    }

    /// Copies into guest memory. `from` is as long as the window.
    pub(crate) fn copy_in(self, from: &[u8]) {
        debug_assert_eq!(from.len(), self.length);
        let (head, words, tail) = self.split();
        let (from_head, rest) = from.split_at(head.length);
        let (from_words, from_tail) = rest.split_at(words.length);
        head.bytes_in(from_head);
        words.words_in(from_words);
        tail.bytes_in(from_tail);
    }

    /// The bytes before the first aligned word, the aligned words, the bytes behind them.
    fn split(self) -> (Self, Self, Self) {
        let to_word = self.base.as_ptr().addr().wrapping_neg() % WORD;
        let (head, rest) = self.split_at(to_word);
        let (words, tail) = rest.split_at(rest.length / WORD * WORD);
        (head, words, tail)
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.min(self.length);
        // SAFETY: `at` is at most the window's length, so the result lies in or just behind it.
        let behind = unsafe { self.base.add(at) };
        (Self { length: at, ..self }, Self { base: behind, length: self.length - at, ..self })
    }

    fn byte(self, index: usize) -> *mut u8 {
        self.base.as_ptr().wrapping_add(index)
    }

    fn bytes_out(self, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().take(self.length).enumerate() {
            // SAFETY: the byte lies in the window.
            *byte = unsafe { load_byte(self.byte(index)) };
        }
    }

    fn bytes_in(self, from: &[u8]) {
        for (index, &byte) in from.iter().take(self.length).enumerate() {
            // SAFETY: the byte lies in the window.
            unsafe { store_byte(self.byte(index), byte) };
        }
    }

    /// Of a window that is aligned to words, as [`Window::split`] makes it, and of whole lines.
    fn lines_out(self, into: &mut [u8]) {
        for (index, line) in into.as_chunks_mut::<LINE>().0.iter_mut().take(self.length / LINE).enumerate() {
            let from = self.byte(index * LINE);
            prefetch_next_page(from);
            for (index, word) in line.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
                // SAFETY: the word lies in the window and is aligned.
                *word = unsafe { load_word(from.wrapping_add(index * WORD)) }.to_ne_bytes();
            }
        }
    }

    /// Of a window that is aligned to words, as [`Window::split`] makes it.
    fn words_out(self, into: &mut [u8]) {
        for (index, word) in into.as_chunks_mut::<WORD>().0.iter_mut().take(self.length / WORD).enumerate() {
            // SAFETY: the word lies in the window and is aligned.
            *word = unsafe { load_word(self.byte(index * WORD)) }.to_ne_bytes();
        }
    }

    /// Of a window that is aligned to words, as [`Window::split`] makes it.
    fn words_in(self, from: &[u8]) {
        for (index, word) in from.as_chunks::<WORD>().0.iter().take(self.length / WORD).enumerate() {
            // SAFETY: the word lies in the window and is aligned.
            unsafe { store_word(self.byte(index * WORD), u64::from_ne_bytes(*word)) };
        }
    }
}

/// One page of guest memory, mapped and aligned.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    base: *mut u8,
    host: PhantomData<&'a Host>,
}

impl Page<'_> {
    /// Whether every byte of the page reads as zero. Looks no further than the first line that
    /// does not.
    pub(crate) fn is_zero(self) -> bool {
        (0..PAGE_BYTES / LINE).all(|line| {
            let line = self.base.wrapping_add(line * LINE);
            prefetch_next_page(line);
            let mut any = 0;
            for word in 0..LINE / WORD {
                // SAFETY: the word lies in the page, which is mapped and aligned.
                any |= unsafe { load_word(line.wrapping_add(word * WORD)) };
            }
            any == 0
        })
    }

    /// Makes the kernel provide the page as a write would, and changes nothing: one byte is exchanged
    /// for itself, in one atomic access that no write of another thread can come between. (An addition of zero
    /// would do, but compilers may turn it into a load.)
    pub(crate) fn touch(self) {
        // SAFETY: the byte lies in the page, which is mapped; only atomics touch it.
        let byte = unsafe { AtomicU8::from_ptr(self.base) };
        let mut value = byte.load(Relaxed);
        while let Err(other) = byte.compare_exchange_weak(value, value, Relaxed, Relaxed) {
            value = other;
        }
    }

    /// Writes zeros over the page.
    pub(crate) fn zero(self) {
        for word in 0..PAGE_BYTES / WORD {
            // SAFETY: the word lies in the page, which is mapped and aligned.
            unsafe { store_word(self.base.wrapping_add(word * WORD), 0) };
        }
    }
}

/// # Safety
///
/// `at` is mapped, readable, aligned to eight bytes, and nobody holds a plain reference to it.
#[inline]
unsafe fn load_word(at: *mut u8) -> u64 {
    // SAFETY: as the caller promises; the reference is to an atomic and lives for one load.
    unsafe { AtomicU64::from_ptr(at.cast()) }.load(Relaxed)
}

/// # Safety
///
/// As [`load_word`], and writable.
#[inline]
unsafe fn store_word(at: *mut u8, value: u64) {
    // SAFETY: as the caller promises; the reference is to an atomic and lives for one store.
    unsafe { AtomicU64::from_ptr(at.cast()) }.store(value, Relaxed);
}

/// # Safety
///
/// `at` is mapped, readable, and nobody holds a plain reference to it.
#[inline]
unsafe fn load_byte(at: *mut u8) -> u8 {
    // SAFETY: as the caller promises; the reference is to an atomic and lives for one load.
    unsafe { AtomicU8::from_ptr(at) }.load(Relaxed)
}

/// # Safety
///
/// As [`load_byte`], and writable.
#[inline]
unsafe fn store_byte(at: *mut u8, value: u8) {
    // SAFETY: as the caller promises; the reference is to an atomic and lives for one store.
    unsafe { AtomicU8::from_ptr(at) }.store(value, Relaxed);
}

/// Asks for the line one page further on, which the processor's own prefetching does not do: it
/// stops at the end of a page. Makes reading large memory about a quarter faster; without effect
/// where the language has no stable means for it.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "it has no means"))]
fn prefetch_next_page(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(PAGE_BYTES).cast()) };
    }
}
