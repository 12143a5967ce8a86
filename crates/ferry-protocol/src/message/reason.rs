//! Why a migration ended, in a form that crosses the link.

use std::fmt;

use ferry_contract::MAX_TEXT_BYTES;
use minicbor::{Decode, Encode};

/// What kind of reason ended a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// The user cancelled.
    Cancelled,
    /// A wait timed out; the text names it.
    TimedOut,
    /// A machine could not do its part.
    Machine,
    /// The peer cannot take part: another version, an unknown feature.
    Incompatible,
    /// The peer sent what the protocol does not allow.
    Misbehaved,
    /// The target has another guest or another migration.
    Busy,
    /// The epoch was refused or is not above an earlier one.
    OldEpoch,
    /// The link was lost, as seen by the peer.
    LinkLost,
    /// The source asked again before custody was taken.
    Asked,
    /// The verdict was a refusal.
    Verdict,
    /// A kind that this build does not know: the text says it.
    Other,
}

impl ReasonKind {
    /// On the wire a kind is its place here; `Other` stands for every place that is not here.
    const NUMBERED: [Self; 10] = [
        Self::Cancelled,
        Self::TimedOut,
        Self::Machine,
        Self::Incompatible,
        Self::Misbehaved,
        Self::Busy,
        Self::OldEpoch,
        Self::LinkLost,
        Self::Asked,
        Self::Verdict,
    ];
}

impl<C> Encode<C> for ReasonKind {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let place = Self::NUMBERED.iter().position(|kind| kind == self);
        e.u32(place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX))?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ReasonKind {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let place = usize::try_from(d.u32()?).unwrap_or(usize::MAX);
        Ok(Self::NUMBERED.get(place).copied().unwrap_or(Self::Other))
    }
}

/// Why a migration ended, in a form that crosses the link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Reason {
    /// The kind.
    #[n(0)]
    pub kind: ReasonKind,
    /// One sentence for people, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(1)]
    pub text: String,
}

impl Reason {
    /// A reason whose text is cut to the bound.
    pub fn new(kind: ReasonKind, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        Self { kind, text }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
