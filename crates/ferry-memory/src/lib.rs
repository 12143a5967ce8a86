//! Guest memory for live migration.
// Skeleton of the API; see the module files.
mod layout;
mod page_set;
mod ram;
pub use layout::{Layout, LayoutError, PAGE_SIZE, PageRange, Span};
pub use page_set::PageSet;
pub use ram::GuestRam;
