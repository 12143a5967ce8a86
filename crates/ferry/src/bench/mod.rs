//! `ferry bench`: figures beside the limit of the same machine, in the same run.

mod precopy;
mod qemu;
mod qmp;
mod raw;

pub(crate) use precopy::precopy;
