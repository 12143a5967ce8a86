//! What of a guest was ever written: the rest is zero on both sides, and need not be looked at.

use ferry_memory::{GuestRam, PAGE_SIZE, PageRange};
use ferry_protocol::RegionSpan;
use ferry_protocol::message::MAX_WRITTEN;

use super::{Machine, Pump};

impl<M: Machine + ?Sized> Pump<'_, M> {
    /// Memory that was never written is zero, and so is the target's: it need not be read. So are the holes of
    /// images. Looked at after dirty tracking began, so that what is written from now on is in a later round.
    pub(super) fn leave_out_untouched(&mut self) {
        let resident = self.ram.resident();
        if resident.is_none() && self.images.is_empty() {
            return;
        }
        self.dirty.clear();
        for range in resident.unwrap_or_else(|| self.ram.mapped().collect()) {
            self.dirty.insert(range);
        }
        self.ram.add_stored(&mut self.dirty);
        self.figures.untouched(self.ram.layout().pages() - self.dirty.count());
    }
}

/// Where memory was ever written; nothing if that is not known or too scattered to tell.
pub(super) fn written(ram: &GuestRam) -> Vec<RegionSpan> {
    let ranges = ram.resident().filter(|ranges| ranges.len() <= MAX_WRITTEN).unwrap_or_default();
    let span =
        |range: &PageRange| RegionSpan { start: range.first * PAGE_SIZE, length: range.count * PAGE_SIZE };
    ranges.iter().map(span).collect()
}
