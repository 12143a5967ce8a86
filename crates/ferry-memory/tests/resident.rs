//! Which parts of guest memory its file says to hold data.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Instant;

use ferry_memory::{GuestRam, Layout, PAGE_SIZE, PageRange, Span};
use rustix::fs::MemfdFlags;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Memory on one memfd, region after region.
fn on_memfd(regions: &[(u64, u64)], flags: i32) -> GuestRam {
    let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(regions.iter().map(|region| region.1).sum()).unwrap();
    let file = Arc::new(file);
    let mut offset = 0;
    let mut made = Vec::new();
    for &(start, length) in regions {
        let part = FileOffset::from_arc(Arc::clone(&file), offset);
        let mapping = MmapRegionBuilder::new(usize::try_from(length).unwrap())
            .with_file_offset(part)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE | flags)
            .build()
            .unwrap();
        made.push(GuestRegionMmap::new(mapping, GuestAddress(start)).unwrap());
        offset += length;
    }
    GuestRam::new(Arc::new(GuestMemoryMmap::<()>::from_regions(made).unwrap())).unwrap()
}

fn holds(ranges: &[PageRange], page: u64) -> bool {
    ranges.iter().any(|range| (range.first..range.first + range.count).contains(&page))
}

#[test]
fn written_pages_are_found_and_untouched_memory_is_left_out() {
    let regions = [(0, 64 << 20), (4 << 30, 32 << 20)];
    let ram = on_memfd(&regions, libc::MAP_SHARED);
    assert_eq!(ram.resident().unwrap(), []);
    let places = [0, 5 << 20, (64 << 20) - 1, 4 << 30, (4 << 30) + (9 << 20) + 77];
    for place in places {
        ram.write(place, &[1]).unwrap();
    }
    let found = ram.resident().unwrap();
    assert!(places.iter().all(|place| holds(&found, place / PAGE_SIZE)), "{found:?}");
    let pages: u64 = found.iter().map(|range| range.count).sum();
    assert_eq!(pages * PAGE_SIZE, 5 * 256 * 1024, "{found:?}");
    assert!(found.windows(2).all(|pair| pair[0].first + pair[0].count <= pair[1].first));
    assert!(found.iter().all(|&range| ram.layout().contains(range)), "none reaches over its region");
}

#[test]
fn the_number_of_ranges_is_bounded() {
    let ram = on_memfd(&[(0, 2 << 30)], libc::MAP_SHARED);
    for place in (0..2_u64 << 30).step_by(1 << 20) {
        ram.write(place, &[1]).unwrap();
    }
    let found = ram.resident().unwrap();
    assert_eq!(found.len(), 2048);
}

#[test]
fn memory_that_its_file_does_not_hold_is_not_told_of() {
    let private = on_memfd(&[(0, 1 << 20)], libc::MAP_PRIVATE);
    private.write(0, &[1]).unwrap();
    assert_eq!(private.resident(), None, "what is written to a private mapping is not in the file");
    let layout = Layout::new(vec![Span { start: 0, length: 1 << 20 }]).unwrap();
    assert_eq!(GuestRam::anonymous(&layout).unwrap().resident(), None);
}

/// Says how long it took, and fails only if that is absurd.
#[test]
fn populated_memory_is_resident_and_looking_costs_little() {
    let ram = on_memfd(&[(0, 512 << 20)], libc::MAP_SHARED);
    let touched = [PageRange { first: 1024, count: 4096 }];
    ram.populate(&touched).unwrap();
    let began = Instant::now();
    assert_eq!(ram.resident().unwrap(), touched);
    println!("resident: 16 MiB of 512 MiB in {:?}", began.elapsed());
    assert!(began.elapsed().as_millis() < 1000);
    for threads in [1, 2] {
        let ram = on_memfd(&[(0, 256 << 20)], libc::MAP_SHARED);
        let began = Instant::now();
        let all = [PageRange { first: 0, count: 65_536 }];
        ram.populate_on(&all, NonZeroUsize::new(threads).unwrap()).unwrap();
        println!("populate: 256 MiB on {threads} threads in {:?}", began.elapsed());
        assert_eq!(ram.resident().unwrap(), all);
    }
}

#[test]
fn looking_at_reserved_huge_pages_provides_none() {
    let huge = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = rustix::fs::memfd_create("test", huge).map(File::from);
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let (Ok(file), true) = (file, free.is_ok_and(|free| free.trim().parse().unwrap_or(0) >= 8)) else {
        println!("skipped: this host has reserved no pages of 2 MiB");
        return;
    };
    file.set_len(64 << 20).unwrap();
    let file = Arc::new(file);
    let part = FileOffset::from_arc(Arc::clone(&file), 0);
    let range = (GuestAddress(1 << 32), 64 << 20, Some(part));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    let ram = GuestRam::new(Arc::new(memory)).unwrap();
    let provided = || file.metadata().unwrap().blocks() * 512;
    assert_eq!((ram.resident().unwrap(), provided()), (vec![], 0));
    let place = (1 << 32) + (9 << 20) + 300_000;
    ram.write(place, &[1]).unwrap();
    let found = ram.resident().unwrap();
    assert!(holds(&found, place / PAGE_SIZE), "{found:?}");
    assert_eq!(found.iter().map(|range| range.count).sum::<u64>(), 64, "its piece alone: {found:?}");
    assert_eq!(provided(), 2 << 20);
}
