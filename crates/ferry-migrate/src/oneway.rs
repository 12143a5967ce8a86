//! Migrations in one direction: into a file or a descriptor, and out of one again. Nobody answers.
//!
//! The frames and messages are those of a link. On the source [`Sink`] says where they go
//! ([`Migration::one_way`](crate::Migration::one_way)); [`take`] reads them on the target. Custody is in
//! the file or the stream: who takes it from a file notes that behind it ([`Taken`]), durably, before
//! the guest runs. [`survey`] reads a file without a machine.

mod claim;
mod descriptor;
mod place;
mod reader;
mod settle;
mod sink;
mod survey;
mod take;

pub use claim::host_name;
pub use descriptor::{DescriptorError, Direction, Stream};
pub use ferry_protocol::message::Taken;
pub use place::{Place, PlaceError};
pub use reader::Damage;
pub use settle::{Whereabouts, look, withdraw};
pub(crate) use sink::OpenSink;
pub use sink::Sink;
pub use survey::{Survey, survey};
pub use take::{FileCopy, Origin, TakeError, TakeOptions, take};
