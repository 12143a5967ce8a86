//! Classification against a model that looks at every byte.

#![expect(clippy::unwrap_used, reason = "the tests' helpers panic as the tests do")]

use ferry_memory::{Classified, GuestRam, Layout, PAGE_SIZE, PageRange, Span};
use proptest::prelude::*;

/// Two regions that touch (frames 16..40 and 40..56) and one above a hole.
const REGIONS: [(u64, u64); 3] = [(16, 24), (40, 16), (100, 24)];

fn ram() -> GuestRam {
    let spans = REGIONS.map(|(first, count)| Span { start: first * PAGE_SIZE, length: count * PAGE_SIZE });
    GuestRam::anonymous(&Layout::new(spans.to_vec()).unwrap()).unwrap()
}

/// Parts that follow each other inside a region, region after region, as an engine's chunks do.
fn parts(cut: u64) -> Vec<PageRange> {
    let region = |(first, count): (u64, u64)| {
        (0..count)
            .step_by(usize::try_from(cut).unwrap())
            .map(move |at| PageRange { first: first + at, count: cut.min(count - at) })
    };
    REGIONS.into_iter().flat_map(region).collect()
}

/// The runs of one kind, region by region, as every byte says.
fn model(ram: &GuestRam, zero: bool) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for (start, count) in REGIONS {
        for page in start..start + count {
            let mut bytes = [0; 4096];
            ram.read(page * PAGE_SIZE, &mut bytes).unwrap();
            if bytes.iter().all(|&byte| byte == 0) != zero {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.first + last.count == page && page != start => last.count += 1,
                _ => runs.push(PageRange { first: page, count: 1 }),
            }
        }
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn pages_are_told_apart_as_every_byte_says(
        writes in prop::collection::vec((0..3usize, any::<prop::sample::Index>(), 1..12_000usize, any::<bool>()), 0..12),
        cut in 1..30u64,
    ) {
        let ram = ram();
        for (region, at, length, sparse) in writes {
            let (first, count) = REGIONS[region];
            let bytes = usize::try_from(count * PAGE_SIZE).unwrap();
            let at = at.index(bytes);
            let mut data = vec![if sparse { 0 } else { 0xa5 }; length.min(bytes - at)];
            *data.last_mut().unwrap() = 1;
            ram.write(first * PAGE_SIZE + at as u64, &data).unwrap();
        }
        let mut found = Classified::new();
        for part in parts(cut) {
            ram.classify(part, &mut found).unwrap();
        }
        let (zero, data) = (model(&ram, true), model(&ram, false));
        prop_assert_eq!(found.zero_pages(), zero.iter().map(|run| run.count).sum::<u64>());
        prop_assert_eq!(found.data_pages(), data.iter().map(|run| run.count).sum::<u64>());
        prop_assert_eq!(found.zero_runs(), zero);
        prop_assert_eq!(found.data_runs(), data);
    }
}
