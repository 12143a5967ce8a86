//! Messages between source and target, and their wire form.
//!
//! A message is CBOR: an array of the message's number and a map of numbered fields. A field that a
//! reader does not know is skipped; a number once used is never used for another meaning. Golden
//! files in `tests/golden` hold today's form of each.

use std::ops::RangeInclusive;

use ferry_contract::{MAX_TEXT_BYTES, Verdict};
use minicbor::{Decode, Encode};

use crate::{Epoch, GuestId, InstanceId, MachineDescription, RegionSpan, SessionId};

mod reason;

pub use reason::{Reason, ReasonKind};

/// The protocol versions that this build speaks.
pub const VERSIONS: RangeInclusive<u16> = 1..=1;

/// The most links that carry pages of one session.
pub const MAX_LANES: u8 = 16;

/// The most ranges of the hint where memory was written.
pub const MAX_WRITTEN: usize = 4096;

/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What the source sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub enum ToTarget {
    /// The first message of a migration.
    #[n(1)]
    Hello(#[n(0)] Hello),
    /// What the target must build, after its hello.
    #[n(2)]
    Offer(#[n(0)] Offer),
    /// All pages of a round were sent.
    #[n(3)]
    RoundEnd(#[n(0)] RoundEnd),
    /// The hash of all the source's memory, after the last round, if the offer asked for it.
    #[n(4)]
    MemoryHash(#[n(0)] MemoryHash),
    /// All sections of the state were sent.
    #[n(5)]
    StateEnd(#[n(0)] StateEnd),
    /// The target may run the guest; from here on the source does not, unless it is refused.
    #[n(6)]
    Custody(#[n(0)] OfEpoch),
    /// The source let the guest go and will not ask again.
    #[n(7)]
    Release(#[n(0)] OfEpoch),
    /// The source ends the migration; only before custody.
    #[n(8)]
    Abort(#[n(0)] Reason),
    /// The first message of a link that asks who runs the guest.
    #[n(9)]
    Ask(#[n(0)] Ask),
    /// The first message of a link that will carry pages of a live session.
    #[n(10)]
    Lane(#[n(0)] Lane),
    /// Who took the custody of a file writes this behind it, before the guest runs. It crosses no link.
    #[n(11)]
    Taken(#[n(0)] Taken),
}

/// What the target sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub enum ToSource {
    /// The answer to the source's hello.
    #[n(1)]
    Hello(#[n(0)] TargetHello),
    /// The answer to the offer.
    #[n(2)]
    Verdict(#[n(0)] Verdict),
    /// The machine stands, with memory and vCPUs: pages may come.
    #[n(3)]
    Built,
    /// Everything that can be checked without running the guest was checked.
    #[n(4)]
    Ready,
    /// The guest runs here under this epoch.
    #[n(5)]
    Running(#[n(0)] OfEpoch),
    /// This process did not take the epoch and never will. Ends a session; answers a question.
    #[n(6)]
    Refused(#[n(0)] Refused),
    /// This process cannot say what became of the epoch.
    #[n(7)]
    Unknown(#[n(0)] Unknown),
    /// No session was begun, or it is over before custody. It says nothing about any epoch: a refusal may
    /// follow.
    #[n(8)]
    Abort(#[n(0)] Reason),
    /// The link on which this comes is a lane now.
    #[n(9)]
    LaneTaken,
    /// Every page of this live round is in guest memory: nothing is under way any more.
    #[n(10)]
    RoundTaken(#[n(0)] RoundTaken),
}

impl ToTarget {
    /// The message's name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Offer(_) => "offer",
            Self::RoundEnd(_) => "round-end",
            Self::MemoryHash(_) => "memory-hash",
            Self::StateEnd(_) => "state-end",
            Self::Custody(_) => "custody",
            Self::Release(_) => "release",
            Self::Abort(_) => "abort",
            Self::Ask(_) => "ask",
            Self::Lane(_) => "lane",
            Self::Taken(_) => "taken",
        }
    }
}

impl ToSource {
    /// The message's name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Verdict(_) => "verdict",
            Self::Built => "built",
            Self::Ready => "ready",
            Self::Running(_) => "running",
            Self::Refused(_) => "refused",
            Self::Unknown(_) => "unknown",
            Self::Abort(_) => "abort",
            Self::LaneTaken => "lane-taken",
            Self::RoundTaken(_) => "round-taken",
        }
    }
}

/// Who wants to move which guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The lowest protocol version that the source speaks.
    #[n(0)]
    pub version_min: u16,
    /// The highest.
    #[n(1)]
    pub version_max: u16,
    /// This attempt.
    #[n(2)]
    pub session: SessionId,
    /// The guest that would move.
    #[n(3)]
    pub guest: GuestId,
    /// The epoch under which the target would run it.
    #[n(4)]
    pub epoch: Epoch,
    /// The program and its version, for people.
    #[n(5)]
    pub program: String,
}

/// The target's side of the negotiation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct TargetHello {
    /// The version that both will speak.
    #[n(0)]
    pub version: u16,
    /// Which life of the target process this is.
    #[n(1)]
    pub instance: InstanceId,
    /// The program and its version, for people.
    #[n(2)]
    pub program: String,
}

/// What the target must build, and what both will do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// The machine.
    #[n(0)]
    pub machine: MachineDescription,
    /// Whether both sides hash all memory after the pause.
    #[n(1)]
    pub verify: bool,
    /// How many links carry pages, this one included: 1 to [`MAX_LANES`].
    #[n(2)]
    pub lanes: u8,
    /// Where memory was ever written, coarsely: what the target had better provide before pages come.
    /// Only a hint; at most [`MAX_WRITTEN`] ranges.
    #[n(3)]
    pub written: Vec<RegionSpan>,
    /// With a witness: the epoch under which its record of the guest stands. The target then runs the
    /// guest only after it won the claim from this epoch to the one that is offered.
    #[n(4)]
    pub witness: Option<Epoch>,
    /// The life of the target process to which it is made, as its hello named it; none in a file or a
    /// pipe. No other process takes the offer, so whoever repeats a session to another gets nowhere.
    #[n(5)]
    pub to: Option<InstanceId>,
    /// The life of the source process: on its own host it is no second process with a guest of that name.
    #[n(6)]
    pub from: Option<InstanceId>,
}

impl Offer {
    /// The plainest offer of a machine: one lane, no hash, no witness, to and from no process in
    /// particular.
    pub fn plain(machine: MachineDescription) -> Self {
        Self { machine, verify: false, lanes: 1, written: Vec::new(), witness: None, to: None, from: None }
    }
}

/// A further link of a live session.
///
/// The session's number is random and was told to nobody but its target: who knows it is its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Lane {
    /// The session.
    #[n(0)]
    pub of: OfEpoch,
    /// The lane's number, from 1; lane 0 is the session's own link.
    #[n(1)]
    pub number: u8,
}

/// Who took the guest of a file, and when.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Taken {
    /// What was taken.
    #[n(0)]
    pub of: OfEpoch,
    /// The life of the process that took it.
    #[n(1)]
    pub instance: InstanceId,
    /// Its number on its host.
    #[n(2)]
    pub pid: u32,
    /// The host's name, for people, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(3)]
    pub host: String,
    /// By that host's clock, in seconds since 1970-01-01 UTC.
    #[n(4)]
    pub unix_seconds: u64,
}

/// A round's totals, which the target holds against what arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct RoundEnd {
    /// The round, from 0.
    #[n(0)]
    pub round: u32,
    /// Pages whose data was sent.
    #[n(1)]
    pub data_pages: u64,
    /// Pages sent as ranges of zeros.
    #[n(2)]
    pub zero_pages: u64,
    /// Whether the guest was paused for it.
    #[n(3)]
    pub last: bool,
}

/// A live round that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct RoundTaken {
    /// The round, from 0.
    #[n(0)]
    pub round: u32,
}

/// BLAKE3 of all guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MemoryHash {
    /// The hash.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub blake3: [u8; 32],
}

/// How many sections the state has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct StateEnd {
    /// Sections sent.
    #[n(0)]
    pub sections: u32,
}

/// A session and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct OfEpoch {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// The epoch.
    #[n(1)]
    pub epoch: Epoch,
}

/// A permanent refusal of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// What is refused.
    #[n(0)]
    pub of: OfEpoch,
    /// Why.
    #[n(1)]
    pub reason: Reason,
}

/// No answer to the question who runs a guest, and what is known all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Unknown {
    /// What was asked.
    #[n(0)]
    pub of: OfEpoch,
    /// What is known.
    #[n(1)]
    pub known: Known,
}

/// What another process knows of the one that was given custody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Known {
    /// Nothing: it kept its journal elsewhere, or the journal is gone.
    #[n(0)]
    NoTrace,
    /// That process may have run the guest, and is gone with it.
    #[n(1)]
    MayHaveRun,
    /// That process lives, and has not written yet what became of it: it will, so ask again.
    #[n(2)]
    Lives,
}

/// The question who runs a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Ask {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The session and epoch for which custody was given.
    #[n(1)]
    pub of: OfEpoch,
    /// The life of the target process to which it was given: only that one can answer.
    #[n(2)]
    pub instance: InstanceId,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The bytes are no CBOR of a message that this build knows.
    #[error("a message cannot be read")]
    Form(#[source] minicbor::decode::Error),
    /// Bytes follow the message.
    #[error("{0} bytes follow a message")]
    Trailing(usize),
    /// A text or list is longer than its bound, or a value makes no sense.
    #[error("a message's {0} is out of bounds")]
    Bounds(&'static str),
}

/// A message with a wire form.
pub trait Message: Sized {
    /// The wire form.
    fn to_bytes(&self) -> Vec<u8>;
    /// Parses the wire form and checks every bound.
    fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError>;
}

impl Message for ToTarget {
    fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let message: Self = decode(bytes)?;
        match &message {
            Self::Hello(hello) => bounded(hello.program.len() <= MAX_TEXT_BYTES, "program name")?,
            Self::Offer(offer) => {
                bounded(offer.machine.check().is_ok(), "machine description")?;
                bounded((1..=MAX_LANES).contains(&offer.lanes), "number of lanes")?;
                bounded(offer.written.len() <= MAX_WRITTEN, "list of written memory")?;
            }
            Self::Abort(reason) => check_reason(reason)?,
            Self::Taken(taken) => bounded(taken.host.len() <= MAX_TEXT_BYTES, "host name")?,
            Self::RoundEnd(_)
            | Self::MemoryHash(_)
            | Self::StateEnd(_)
            | Self::Custody(_)
            | Self::Release(_)
            | Self::Ask(_)
            | Self::Lane(_) => {}
        }
        Ok(message)
    }
}

impl Message for ToSource {
    fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let message: Self = decode(bytes)?;
        match &message {
            Self::Hello(hello) => bounded(hello.program.len() <= MAX_TEXT_BYTES, "program name")?,
            Self::Verdict(verdict) => bounded(verdict.is_bounded(), "verdict")?,
            Self::Refused(refused) => check_reason(&refused.reason)?,
            Self::Abort(reason) => check_reason(reason)?,
            Self::Built
            | Self::Ready
            | Self::Running(_)
            | Self::Unknown(_)
            | Self::LaneTaken
            | Self::RoundTaken(_) => {}
        }
        Ok(message)
    }
}

/// Writing into a vector does not fail and no message has a hand-written encoder that could; the
/// empty bytes that an error would give are no message, so a peer would refuse them.
fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    minicbor::to_vec(message).unwrap_or_default()
}

fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, MessageError> {
    bounded(bytes.len() <= MAX_MESSAGE_BYTES, "length")?;
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().map_err(MessageError::Form)?;
    match bytes.len() - decoder.position() {
        0 => Ok(message),
        trailing => Err(MessageError::Trailing(trailing)),
    }
}

fn bounded(within: bool, what: &'static str) -> Result<(), MessageError> {
    if within { Ok(()) } else { Err(MessageError::Bounds(what)) }
}

fn check_reason(reason: &Reason) -> Result<(), MessageError> {
    bounded(reason.text.len() <= MAX_TEXT_BYTES, "reason")
}
