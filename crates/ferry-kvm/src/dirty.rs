//! Where a machine learns which pages its guest wrote: KVM's dirty log, or its dirty rings.
//!
//! Both do the same through [`DirtySource`]; the tests below run their one body on each.

use ferry_memory::PageSet;
use ferry_migrate::{Harvest, MachineError};

use crate::Vcpus;
use crate::dirty_log::{self, DirtyLog};
use crate::dirty_ring::DirtyRing;
use crate::machine::failed;
use crate::memory::MemorySlots;

/// The dirty source of one machine.
#[derive(Debug)]
pub(crate) enum DirtySource {
    Log(DirtyLog),
    Ring(DirtyRing),
}

impl DirtySource {
    /// The rings, if they are enabled, else the log.
    pub(crate) fn of(memory: &MemorySlots, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        let Some(ring) = memory.dirty_ring() else { return Ok(Self::Log(DirtyLog::new(memory.vm()))) };
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                ring.attach(vcpu).map_err(|error| failed("a vCPU's writes cannot be tracked", error))
            })?;
        }
        Ok(Self::Ring(ring.clone()))
    }

    /// See [`ferry_migrate::Machine::start_dirty_tracking`].
    pub(crate) fn start(&mut self, memory: &MemorySlots) -> Result<(), MachineError> {
        match self {
            Self::Log(log) => {
                log.start(memory).map_err(|error| failed("the dirty log does not start", error))
            }
            Self::Ring(ring) => {
                ring.start(memory).map_err(|error| failed("the dirty rings do not start", error))
            }
        }
    }

    /// See [`ferry_migrate::Machine::harvest_dirty`].
    pub(crate) fn harvest(
        &mut self,
        memory: &MemorySlots,
        when: Harvest,
        into: &mut PageSet,
    ) -> Result<(), MachineError> {
        match self {
            Self::Log(log) => log
                .harvest(memory, when, into)
                .map_err(|error| failed("the dirty log cannot be harvested", error)),
            Self::Ring(ring) => {
                if ring.has_log() && when == Harvest::Paused {
                    dirty_log::read_all(memory, into)
                        .map_err(|error| failed("the dirty log beside the rings cannot be read", error))?;
                }
                ring.harvest(when, into).map_err(|error| failed("the dirty rings cannot be harvested", error))
            }
        }
    }

    /// See [`ferry_migrate::Machine::stop_dirty_tracking`].
    pub(crate) fn stop(&mut self, memory: &MemorySlots) -> Result<(), MachineError> {
        match self {
            Self::Log(log) => log.stop(memory).map_err(|error| failed("the dirty log does not stop", error)),
            Self::Ring(_) => {
                DirtyRing::stop(memory).map_err(|error| failed("the dirty rings do not stop", error))
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use ferry_memory::{GuestRam, PAGE_SIZE};
    use ferry_protocol::RegionSpan;
    use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, kvm_regs};
    use kvm_ioctls::{VcpuExit, VcpuFd};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::DirtyRingError;
    use crate::dirty_log::Protect;
    use crate::memory::allocate;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Source {
        Log(Protect),
        Ring(u32),
    }

    const SOURCES: [Source; 4] = [
        Source::Log(Protect::OnRead),
        Source::Log(Protect::Manual),
        Source::Log(Protect::ManualInitiallySet),
        Source::Ring(256),
    ];

    /// Code in real mode that writes two pages of its data segment and says so, for ever:
    /// `mov al, 1; mov [0], al; mov [0x4000], al; out 0x10, al; jmp` to its start.
    const WRITE_TWO: &[u8] = &[0xb0, 1, 0xa2, 0, 0, 0xa2, 0, 0x40, 0xe6, 0x10, 0xeb, 0xf4];

    /// Memory of 70 pages, no multiple of 64, so that both written pages lie in a slot's tail.
    const TAIL_PAGES: u64 = 70;
    const TAIL: [u64; 2] = [65, 69];

    /// Code that writes its turn's number into every page from 2 to 0xef, then says so:
    /// `again: mov bx, 0x200; inc ecx; next: mov ds, bx; mov [0], ecx; test bh, 15; jnz on; out 0x11, al;
    /// on: add bx, 0x100; cmp bx, 0xf000; jne next; mov eax, ecx; out 0x10, eax; jmp again`. More pages
    /// than the smallest ring has room for. The exit after each 16th is for KVMs that emulate this code:
    /// they look at the ring only between two runs, and it has 64 entries in reserve.
    const WRITE_ALL: &[u8] = &[
        0xbb, 0x00, 0x02, 0x66, 0x41, 0x8e, 0xdb, 0x66, 0x89, 0x0e, 0, 0, 0xf6, 0xc7, 0x0f, 0x75, 0x02, 0xe6,
        0x11, 0x81, 0xc3, 0x00, 0x01, 0x81, 0xfb, 0x00, 0xf0, 0x75, 0xe8, 0x66, 0x89, 0xc8, 0x66, 0xe7, 0x10,
        0xeb, 0xdb,
    ];
    const ALL_PAGES: u64 = 256;

    /// Code that writes its turn's number into every page from 2 to 0x25f without an exit, then says so:
    /// `again: mov ebx, 0x2000; inc ecx; next: mov [ebx], ecx; add ebx, 0x1000; cmp ebx, 0x260000; jne next;
    /// mov eax, ecx; out 0x10, eax; jmp again`. Far more than the smallest ring holds: a KVM that emulates
    /// this code in one stretch writes over it.
    const WRITE_STORM: &[u8] = &[
        0x66, 0xbb, 0, 0x20, 0, 0, 0x66, 0x41, 0x67, 0x66, 0x89, 0x0b, 0x66, 0x81, 0xc3, 0, 0x10, 0, 0, 0x66,
        0x81, 0xfb, 0, 0, 0x26, 0, 0x75, 0xec, 0x66, 0x89, 0xc8, 0x66, 0xe7, 0x10, 0xeb, 0xdc,
    ];
    const STORM_PAGES: u64 = 0x260;
    /// Where [`WRITE_ALL`] lies beside it.
    const CALM: u64 = 0x1800;

    struct Writer {
        /// Gone while another thread runs it.
        vcpu: Option<VcpuFd>,
        memory: MemorySlots,
        source: DirtySource,
        ram: GuestRam,
    }

    impl Writer {
        fn new(source: Source, pages: u64, code: &[u8]) -> Option<Self> {
            let kvm = crate::open().map_err(|error| println!("skipped: {error}")).ok()?;
            let vm = Arc::new(kvm.create_vm().unwrap());
            let span = RegionSpan { start: 0, length: pages * PAGE_SIZE };
            let mut memory = MemorySlots::register(Arc::clone(&vm), allocate(&[span]).unwrap()).unwrap();
            memory.memory().write_slice(code, GuestAddress(0x1000)).unwrap();
            let ring = match source {
                Source::Log(_) => None,
                Source::Ring(entries) => match memory.enable_dirty_ring(entries) {
                    Ok(ring) => Some(ring),
                    Err(error @ (DirtyRingError::NotOffered | DirtyRingError::Enable { .. })) => {
                        println!("skipped: {error}");
                        return None;
                    }
                    Err(error) => panic!("{error}"),
                },
            };
            let vcpu = vm.create_vcpu(0).unwrap();
            let mut sregs = vcpu.get_sregs().unwrap();
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            (sregs.ds.base, sregs.ds.selector) = (0x41000, 0x4100);
            vcpu.set_sregs(&sregs).unwrap();
            vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() }).unwrap();
            let dirty = match (source, ring) {
                (Source::Log(protect), _) => DirtyLog::in_mode(&vm, protect).map(DirtySource::Log),
                (_, Some(ring)) => {
                    ring.attach(&vcpu).unwrap();
                    Some(DirtySource::Ring(ring))
                }
                _ => None,
            };
            if dirty.is_none() {
                println!("skipped: this KVM does not offer {source:?}");
            }
            let ram = GuestRam::new(Arc::new(memory.memory().clone())).unwrap();
            Some(Self { vcpu: Some(vcpu), memory, source: dirty?, ram })
        }

        fn write(&mut self) {
            let exit = self.vcpu.as_mut().unwrap().run();
            assert!(matches!(exit, Ok(VcpuExit::IoOut(0x10, _))), "{exit:?}");
        }

        fn start(&mut self) {
            self.source.start(&self.memory).unwrap();
        }

        fn harvest(&mut self, when: Harvest) -> Vec<u64> {
            let mut pages = PageSet::empty(self.ram.layout());
            self.source.harvest(&self.memory, when, &mut pages).unwrap();
            pages.ranges().flat_map(|range| range.first..range.first + range.count).collect()
        }

        /// Reads these pages into the copy, as a migration does after a harvest.
        fn take(&self, pages: &[u64], copy: &mut [u8]) {
            for page in pages {
                let at = usize::try_from(page * PAGE_SIZE).unwrap();
                self.ram.read(page * PAGE_SIZE, &mut copy[at..at + 4096]).unwrap();
            }
        }
    }

    #[test]
    fn every_source_notes_each_write_once_and_again_after_a_live_harvest() {
        for source in SOURCES {
            let Some(mut guest) = Writer::new(source, TAIL_PAGES, WRITE_TWO) else { continue };
            guest.write();
            for _ in 0..2 {
                guest.start();
                assert!(guest.harvest(Harvest::Live).is_empty(), "{source:?}: nothing was written yet");
                guest.write();
                assert_eq!(guest.harvest(Harvest::Live), TAIL, "{source:?}");
                assert!(guest.harvest(Harvest::Live).is_empty(), "{source:?}: harvested once");
                guest.write();
                assert_eq!(guest.harvest(Harvest::Paused), TAIL, "{source:?}: noted again");
                guest.source.stop(&guest.memory).unwrap();
                guest.write();
            }
        }
    }

    #[test]
    fn a_fast_writer_loses_nothing_however_small_the_ring() {
        for source in SOURCES.into_iter().chain([Source::Ring(1024)]) {
            let Some(mut guest) = Writer::new(source, ALL_PAGES, WRITE_ALL) else { continue };
            let mut copy = vec![0; usize::try_from(ALL_PAGES * PAGE_SIZE).unwrap()];
            guest.start();
            guest.ram.read(0, &mut copy).unwrap();
            let mut vcpu = guest.vcpu.take().unwrap();
            let ring = guest.memory.dirty_ring().cloned();
            let (stop, turns, fulls) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| run_until(&stop, &turns, &fulls, &mut vcpu, ring.as_ref()));
                let begun = Instant::now();
                let few = || turns.load(Ordering::Relaxed) <= 5;
                let never_full = || source == Source::Ring(256) && fulls.load(Ordering::Relaxed) == 0;
                for round in 0.. {
                    // An emulated host takes longer for the few turns that are wanted, and to fill a ring.
                    if round >= 30 && !few() && !never_full() {
                        break;
                    }
                    assert!(begun.elapsed() < Duration::from_secs(60), "{source:?}: it hardly writes");
                    std::thread::park_timeout(Duration::from_millis(if round < 30 { 2 } else { 50 }));
                    let pages = guest.harvest(Harvest::Live);
                    guest.take(&pages, &mut copy);
                }
                stop.store(true, Ordering::Relaxed);
                thread.join().unwrap();
            });
            let last = guest.harvest(Harvest::Paused);
            guest.take(&last, &mut copy);
            let mut memory = vec![0; copy.len()];
            guest.ram.read(0, &mut memory).unwrap();
            assert!(memory == copy, "{source:?}: the copy differs from memory");
        }
    }

    /// Runs the vCPU until it is to stop, and counts its turns and how often its ring was full.
    fn run_until(
        stop: &AtomicBool,
        turns: &AtomicU32,
        fulls: &AtomicU32,
        vcpu: &mut VcpuFd,
        ring: Option<&DirtyRing>,
    ) {
        loop {
            match (vcpu.run(), ring) {
                (Ok(VcpuExit::IoOut(0x10, _)), _) => drop(turns.fetch_add(1, Ordering::Relaxed)),
                (Ok(VcpuExit::IoOut(0x11, _)), _) => {}
                (Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)), Some(ring)) => {
                    assert!(fulls.fetch_add(1, Ordering::Relaxed) < 100_000, "no room is made");
                    ring.make_room(0).unwrap();
                }
                (exit, _) => panic!("{exit:?}"),
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    #[test]
    fn a_ring_that_was_written_over_stops_no_vcpu_and_is_whole_in_the_next_tracking() {
        let Some(mut guest) = Writer::new(Source::Ring(256), STORM_PAGES, WRITE_STORM) else { return };
        guest.memory.memory().write_slice(WRITE_ALL, GuestAddress(CALM)).unwrap();
        let ring = guest.memory.dirty_ring().cloned().unwrap();
        let mut vcpu = guest.vcpu.take().unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.ds.base, sregs.ds.selector, sregs.ds.limit, sregs.ds.g) = (0, 0, u32::MAX, 1);
        vcpu.set_sregs(&sregs).unwrap();
        guest.start();
        run_turns(&mut vcpu, &ring, 20);
        let mut pages = PageSet::empty(guest.ram.layout());
        match guest.source.harvest(&guest.memory, Harvest::Live, &mut pages) {
            Ok(()) => println!("this KVM never wrote over the ring"),
            Err(error) => assert!(format!("{error:?}").contains("Overflowed"), "{error:?}"),
        }
        // Also when nobody tracks any more, and in the next tracking.
        guest.source.stop(&guest.memory).unwrap();
        run_turns(&mut vcpu, &ring, 3);
        vcpu.set_regs(&kvm_regs { rip: CALM, rflags: 2, ..Default::default() }).unwrap();
        guest.start();
        let mut copy = vec![0; usize::try_from(STORM_PAGES * PAGE_SIZE).unwrap()];
        guest.ram.read(0, &mut copy).unwrap();
        for turn in 0..10 {
            run_turns(&mut vcpu, &ring, 2);
            let when = if turn == 9 { Harvest::Paused } else { Harvest::Live };
            let pages = guest.harvest(when);
            assert!(pages.len() >= 0xee, "turn {turn}: {} pages", pages.len());
            guest.take(&pages, &mut copy);
        }
        let mut memory = vec![0; copy.len()];
        guest.ram.read(0, &mut memory).unwrap();
        assert!(memory == copy, "the copy differs from memory");
    }

    /// Runs the vCPU for so many turns.
    fn run_turns(vcpu: &mut VcpuFd, ring: &DirtyRing, turns: u32) {
        let (mut done, mut fulls) = (0, 0);
        while done < turns {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => done += 1,
                Ok(VcpuExit::IoOut(0x11, _)) => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                    fulls += 1;
                    ring.make_room(0).unwrap();
                }
                exit => panic!("{exit:?}"),
            }
            assert!(fulls < 100_000, "no room is made");
        }
    }

    #[test]
    fn what_no_ring_can_be_is_refused() {
        let Ok(kvm) = crate::open() else {
            println!("skipped: no /dev/kvm here");
            return;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let span = RegionSpan { start: 0, length: PAGE_SIZE };
        let mut memory = MemorySlots::register(Arc::clone(&vm), allocate(&[span]).unwrap()).unwrap();
        for entries in [0, 1, 128, 300, 1 << 31] {
            match memory.enable_dirty_ring(entries) {
                Err(DirtyRingError::NotOffered) => println!("skipped: no dirty ring here"),
                other => {
                    assert!(matches!(other, Err(DirtyRingError::Entries { .. })), "{entries}: {other:?}");
                }
            }
        }
        if let Ok(ring) = MemorySlots::enable_dirty_ring(&mut memory, 256) {
            assert!(matches!(ring.make_room(0), Err(DirtyRingError::NoSuchVcpu { vcpu: 0 })));
        }
        let _vcpu = vm.create_vcpu(0).unwrap();
        let late = memory.enable_dirty_ring(DirtyRing::ENTRIES).unwrap_err();
        assert!(matches!(late, DirtyRingError::Enable { .. } | DirtyRingError::NotOffered), "{late}");
    }
}
