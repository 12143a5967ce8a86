//! A handle on a guest's memory.
use crate::Layout;
/// A handle on the memory of one guest; clones share it.
#[derive(Debug, Clone)]
pub struct GuestRam {
    layout: Layout,
}
impl GuestRam {
    /// Where the memory lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}
