//! Page sets against the plainest model: an ordered set of frame numbers.

#![expect(clippy::unwrap_used, reason = "the tests' helpers panic as the tests do")]

use std::collections::BTreeSet;

use ferry_memory::{Layout, PAGE_SIZE, PageRange, PageSet, Span};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Insert(PageRange),
    Remove(PageRange),
    Bitmap(usize, Vec<u64>),
    Union(Vec<PageRange>),
    Clear,
}

/// Up to four regions of up to 300 pages, touching or with holes between them.
fn layouts() -> impl Strategy<Value = Layout> {
    let regions = prop::collection::vec((prop_oneof![Just(0u64), 1..100u64], 1..300u64), 1..5);
    regions.prop_map(|regions| {
        let mut end = 0;
        let spans = regions.into_iter().map(|(hole, pages)| {
            let start = end + hole * PAGE_SIZE;
            end = start + pages * PAGE_SIZE;
            Span { start, length: pages * PAGE_SIZE }
        });
        Layout::new(spans.collect()).unwrap()
    })
}

fn ranges() -> impl Strategy<Value = PageRange> {
    // Beyond the end, empty, and absurd ones too.
    let near = (0..1600u64, prop_oneof![0..4u64, 0..200u64]);
    prop_oneof![20 => near, 1 => (any::<u64>(), any::<u64>())]
        .prop_map(|(first, count)| PageRange { first, count })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let word = prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>()];
    let op = prop_oneof![
        8 => ranges().prop_map(Op::Insert),
        6 => ranges().prop_map(Op::Remove),
        3 => (0..5usize, prop::collection::vec(word, 0..7)).prop_map(|(region, words)| Op::Bitmap(region, words)),
        2 => prop::collection::vec(ranges(), 0..6).prop_map(Op::Union),
        1 => Just(Op::Clear),
    ];
    prop::collection::vec(op, 0..24)
}

/// The frames of a range that lies inside one region.
fn inside(layout: &Layout, range: PageRange) -> Option<BTreeSet<u64>> {
    let end = u128::from(range.first) + u128::from(range.count);
    let fits = |region: PageRange| {
        range.count > 0
            && range.first >= region.first
            && end <= u128::from(region.first) + u128::from(region.count)
    };
    layout.ranges().any(fits).then(|| (range.first..range.first + range.count).collect())
}

fn apply(layout: &Layout, op: Op, set: &mut PageSet, model: &mut BTreeSet<u64>) {
    match op {
        Op::Insert(range) => {
            let frames = inside(layout, range);
            assert_eq!(set.insert(range), frames.is_some(), "{range:?}");
            model.extend(frames.into_iter().flatten());
        }
        Op::Remove(range) => {
            let frames = inside(layout, range);
            assert_eq!(set.remove(range), frames.is_some(), "{range:?}");
            model.retain(|frame| !frames.as_ref().is_some_and(|frames| frames.contains(frame)));
        }
        Op::Bitmap(region, words) => {
            let pages = layout.ranges().nth(region);
            assert_eq!(set.insert_bitmap(region, &words), pages.is_some());
            let Some(pages) = pages else { return };
            let is_set = |bit: u64| {
                words.get(usize::try_from(bit / 64).unwrap()).is_some_and(|word| word >> (bit % 64) & 1 == 1)
            };
            model.extend((0..pages.count).filter(|&bit| is_set(bit)).map(|bit| pages.first + bit));
        }
        Op::Union(ranges) => {
            let mut other = PageSet::empty(layout);
            for range in ranges {
                other.insert(range);
                model.extend(inside(layout, range).into_iter().flatten());
            }
            assert!(set.union(&other));
        }
        Op::Clear => {
            set.clear();
            model.clear();
        }
    }
}

/// The runs of the model: maximal inside a region, then cut.
fn model_runs(layout: &Layout, model: &BTreeSet<u64>, max_pages: u64) -> Vec<PageRange> {
    let mut runs = Vec::new();
    for region in layout.ranges() {
        let mut open: Option<PageRange> = None;
        for &frame in model.range(region.first..region.first + region.count) {
            match &mut open {
                Some(run) if run.first + run.count == frame && run.count < max_pages => run.count += 1,
                _ => runs.extend(open.replace(PageRange { first: frame, count: 1 })),
            }
        }
        runs.extend(open);
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_set_does_what_its_model_does(layout in layouts(), ops in ops(), max_pages in 1..80u64) {
        let mut set = PageSet::empty(&layout);
        let mut model = BTreeSet::new();
        for op in ops {
            apply(&layout, op, &mut set, &mut model);
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.ranges().collect::<Vec<_>>(), model_runs(&layout, &model, u64::MAX));
        }
        prop_assert_eq!(set.chunks(max_pages).collect::<Vec<_>>(), model_runs(&layout, &model, max_pages));
        for frame in 0..1700 {
            prop_assert_eq!(set.contains(frame), model.contains(&frame), "frame {}", frame);
        }
    }

    #[test]
    fn a_set_is_made_again_from_its_bitmaps_and_from_its_ranges(layout in layouts(), ops in ops()) {
        let mut set = PageSet::empty(&layout);
        for op in ops {
            apply(&layout, op, &mut set, &mut BTreeSet::new());
        }
        let mut by_bitmaps = PageSet::empty(&layout);
        for region in 0..layout.spans().len() {
            prop_assert!(by_bitmaps.insert_bitmap(region, set.bitmap(region).unwrap()));
        }
        let mut by_ranges = PageSet::empty(&layout);
        for range in set.ranges() {
            prop_assert!(layout.contains(range) && by_ranges.insert(range));
        }
        prop_assert_eq!(&by_bitmaps, &set);
        prop_assert_eq!(&by_ranges, &set);
        for range in set.clone().chunks(7) {
            prop_assert!(set.remove(range));
        }
        prop_assert!(set.is_empty());
    }

    #[test]
    fn a_layout_is_taken_if_and_only_if_it_holds_together(
        spans in prop::collection::vec((0..12u64, 0..4u64, 0..20u64), 0..4),
    ) {
        // One in twenty is off its page.
        let spans: Vec<Span> = spans
            .into_iter()
            .map(|(start, pages, odd)| Span { start: start * PAGE_SIZE + u64::from(odd == 0), length: pages * PAGE_SIZE })
            .collect();
        let holds = !spans.is_empty()
            && spans.iter().all(|span| span.start % PAGE_SIZE == 0 && span.length > 0)
            && spans.windows(2).all(|pair| pair[0].start + pair[0].length <= pair[1].start);
        let layout = Layout::new(spans.clone());
        prop_assert_eq!(layout.is_ok(), holds);
        if let Ok(layout) = layout {
            prop_assert_eq!(layout.spans(), &spans);
            prop_assert_eq!(PageSet::full(&layout).count(), layout.pages());
        }
    }
}
