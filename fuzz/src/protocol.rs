//! Bodies over `ferry-protocol`: names, frames and messages.

use std::fmt::Debug;

use ferry_protocol::GuestId;
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, PageHead, encode};
use ferry_protocol::message::{Message, ToSource, ToTarget};

use crate::state;

/// A guest's name, as text and as CBOR.
pub fn guest_id(bytes: &[u8]) {
    let from_text = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<GuestId>().ok());
    let from_cbor = minicbor::decode::<GuestId>(bytes).ok();
    for guest in [from_text, from_cbor].into_iter().flatten() {
        let name = guest.as_str();
        // The name becomes part of a file name.
        assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'), "{name}");
        assert_eq!(name.parse().as_ref(), Ok(&guest));
    }
}

/// A stream of frames, as its reader takes it: header, then head, then what the kind says.
///
/// The checksum is looked at and then passed over: a hostile peer computes it as well as anybody.
pub fn frame(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = Header::parse(header) else { return };
        let Some((head, after)) = after.split_at_checked(header.head_bytes) else { return };
        if header.check(head).is_ok() {
            let whole = &rest[..HEADER_BYTES + head.len()];
            assert_eq!(encode(header.kind, head), whole, "a frame changed on the way");
        }
        match header.kind {
            FrameKind::ToTarget => message::<ToTarget>(head),
            FrameKind::ToSource => message::<ToSource>(head),
            FrameKind::Section => state::section(head),
            kind @ (FrameKind::Pages | FrameKind::Zeros) => page_head_of(kind, head),
        }
        rest = after;
    }
}

/// The head of a page frame, of data and of zeros.
pub fn page_head(bytes: &[u8]) {
    page_head_of(FrameKind::Pages, bytes);
    page_head_of(FrameKind::Zeros, bytes);
}

fn page_head_of(kind: FrameKind, bytes: &[u8]) {
    let Ok(head) = PageHead::parse(kind, bytes) else { return };
    let again = PageHead::parse(kind, &head.to_bytes());
    assert_eq!(again.as_ref(), Ok(&head), "a page head changed on the way");
}

/// A message of one direction.
pub fn message<T: Message + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = T::from_bytes(bytes) else { return };
    let again = T::from_bytes(&message.to_bytes());
    assert_eq!(again.ok().as_ref(), Some(&message), "a message changed on the way");
}
