//! Round trips, and what a peer of a later build or an enemy may send.

use ferry_contract::{MAX_FINDINGS, MAX_TEXT_BYTES, Verdict};
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, PageHead, encode};
use ferry_protocol::message::{
    MAX_MESSAGE_BYTES, Message, MessageError, Reason, ReasonKind, ToSource, ToTarget,
};
use ferry_protocol::{MAX_CONFIG_BYTES, MAX_REGIONS, RegionSpan};
use proptest::prelude::*;

use super::values::{any_to_source, any_to_target, machine, to_source, to_target};

/// Whatever is parsed comes back the same: the parser lets nothing through that it does not hold.
fn parse_all(bytes: &[u8]) {
    if let Ok(message) = ToTarget::from_bytes(bytes) {
        assert_eq!(ToTarget::from_bytes(&message.to_bytes()).unwrap(), message);
    }
    if let Ok(message) = ToSource::from_bytes(bytes) {
        assert_eq!(ToSource::from_bytes(&message.to_bytes()).unwrap(), message);
    }
    for kind in [FrameKind::Pages, FrameKind::Zeros] {
        if let Ok(head) = PageHead::parse(kind, bytes) {
            assert_eq!(PageHead::parse(kind, &head.to_bytes()), Ok(head));
        }
    }
    if let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::parse(header)
        && header.check(rest).is_ok()
    {
        assert_eq!(encode(header.kind, rest)[HEADER_BYTES..], *rest);
    }
}

fn mutate(mut bytes: Vec<u8>, changes: &[(u16, u8, u8)]) -> Vec<u8> {
    for &(at, value, how) in changes {
        let at = usize::from(at) % (bytes.len() + 1);
        match how % 4 {
            0 => bytes.insert(at, value),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = value,
            _ => bytes.push(value),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_back(to_target in any_to_target(), to_source in any_to_source()) {
        prop_assert_eq!(&ToTarget::from_bytes(&to_target.to_bytes()).unwrap(), &to_target);
        prop_assert_eq!(&ToSource::from_bytes(&to_source.to_bytes()).unwrap(), &to_source);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
        parse_all(&bytes);
    }

    #[test]
    fn changed_messages_do_no_harm(
        to_target in any_to_target(),
        to_source in any_to_source(),
        changes in prop::collection::vec(any::<(u16, u8, u8)>(), 1..5),
    ) {
        parse_all(&mutate(to_target.to_bytes(), &changes));
        parse_all(&mutate(to_source.to_bytes(), &changes));
    }

    /// The kind of its frame says which way a message goes. Even without it, a message that went the
    /// wrong way is none, or one of the same number whose fields happen to fit, and never one that
    /// passes custody, refuses it or asks for it.
    #[test]
    fn a_misdirected_message_passes_no_custody(to_target in any_to_target(), to_source in any_to_source()) {
        let read = ToSource::from_bytes(&to_target.to_bytes());
        prop_assert!(!matches!(read, Ok(ToSource::Refused(_) | ToSource::Running(_))), "{:?}", read);
        let read = ToTarget::from_bytes(&to_source.to_bytes());
        prop_assert!(!matches!(read, Ok(ToTarget::Custody(_) | ToTarget::Ask(_))), "{:?}", read);
    }
}

/// The message's bytes with one more field, of a number that no build uses, at the end of its map.
fn with_unknown_field(bytes: &[u8]) -> Option<Vec<u8>> {
    // An array of two: the message's number, then an array of one: the map of its fields.
    let mut bytes = bytes.to_vec();
    let map = bytes.iter().position(|byte| (0xa0..0xb7).contains(byte))?;
    assert!(map <= 3, "the map of fields is not where it was: {bytes:02x?}");
    bytes[map] += 1;
    bytes.extend_from_slice(&[0x18, 0xc8]); // 200
    bytes.extend_from_slice(&[0x82, 0x01, 0x63, b'n', b'e', b'w']); // [1, "new"]
    Some(bytes)
}

#[test]
fn a_field_of_a_later_build_is_skipped() {
    let mut seen = 0;
    for message in to_target() {
        let longer = with_unknown_field(&message.to_bytes()).unwrap();
        assert_eq!(ToTarget::from_bytes(&longer).unwrap(), message);
        seen += 1;
    }
    for message in to_source() {
        let Some(longer) = with_unknown_field(&message.to_bytes()) else { continue };
        assert_eq!(ToSource::from_bytes(&longer).unwrap(), message);
        seen += 1;
    }
    assert_eq!(seen, 11 + 7, "every message but the three without fields");
}

#[test]
fn every_cut_and_every_trailing_byte_is_seen() {
    let all = to_target().iter().map(Message::to_bytes).collect::<Vec<_>>();
    for bytes in all {
        for end in 0..bytes.len() {
            assert!(ToTarget::from_bytes(&bytes[..end]).is_err());
        }
        let longer = [bytes, vec![0]].concat();
        assert!(matches!(ToTarget::from_bytes(&longer), Err(MessageError::Trailing(1))));
    }
}

#[test]
fn texts_and_lists_over_their_bound_are_refused() {
    let long = "x".repeat(MAX_TEXT_BYTES + 1);
    let out_of_bounds = |result: Result<(), MessageError>, what: &str| {
        assert!(matches!(&result, Err(MessageError::Bounds(field)) if *field == what), "{what}: {result:?}");
    };
    let reason = Reason { kind: ReasonKind::Machine, text: long.clone() };
    let mut targets = to_target();
    let mut sources = to_source();
    let offer = |change: &dyn Fn(&mut ferry_protocol::MachineDescription)| {
        let mut machine = machine();
        change(&mut machine);
        let offer = ToTarget::Offer(ferry_protocol::message::Offer::plain(machine));
        ToTarget::from_bytes(&offer.to_bytes()).map(drop)
    };
    out_of_bounds(offer(&|machine| machine.vcpus = 0), "machine description");
    out_of_bounds(offer(&|machine| machine.config = vec![0; MAX_CONFIG_BYTES + 1]), "machine description");
    let many = |n: usize| (0..n as u64).map(|n| RegionSpan { start: n << 12, length: 4096 }).collect();
    out_of_bounds(offer(&|machine| machine.regions = many(MAX_REGIONS + 1)), "machine description");
    assert!(offer(&|machine| machine.regions = many(MAX_REGIONS)).is_ok());

    if let ToTarget::Hello(hello) = &mut targets[0] {
        hello.program.clone_from(&long);
    }
    out_of_bounds(ToTarget::from_bytes(&targets[0].to_bytes()).map(drop), "program name");
    if let ToSource::Hello(hello) = &mut sources[0] {
        hello.program.clone_from(&long);
    }
    out_of_bounds(ToSource::from_bytes(&sources[0].to_bytes()).map(drop), "program name");
    out_of_bounds(ToTarget::from_bytes(&ToTarget::Abort(reason.clone()).to_bytes()).map(drop), "reason");
    out_of_bounds(ToSource::from_bytes(&ToSource::Abort(reason.clone()).to_bytes()).map(drop), "reason");
    if let ToSource::Refused(refused) = &mut sources[5] {
        refused.reason = reason;
    }
    out_of_bounds(ToSource::from_bytes(&sources[5].to_bytes()).map(drop), "reason");
    let ToSource::Verdict(Verdict { findings }) = &sources[1] else { panic!("the verdict has moved") };
    let many = ToSource::Verdict(Verdict { findings: vec![findings[0].clone(); MAX_FINDINGS + 1] });
    out_of_bounds(ToSource::from_bytes(&many.to_bytes()).map(drop), "verdict");
    let huge = vec![0; MAX_MESSAGE_BYTES + 1];
    out_of_bounds(ToSource::from_bytes(&huge).map(drop), "length");
}

/// A list that claims billions of entries in a few bytes is refused without room being made for them.
#[test]
fn a_claimed_length_reserves_nothing() {
    let claims: [&[u8]; 3] = [
        &[0x82, 0x02, 0x81, 0xa1, 0x00, 0x9b, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x82, 0x08, 0x81, 0xa2, 0x00, 0x00, 0x01, 0x7b, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x82, 0x02, 0x81, 0xa1, 0x00, 0xa4, 0x03, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for bytes in claims {
        assert!(matches!(ToSource::from_bytes(bytes), Err(MessageError::Form(_))), "{bytes:02x?}");
        assert!(matches!(ToTarget::from_bytes(bytes), Err(MessageError::Form(_))), "{bytes:02x?}");
    }
}

#[test]
fn a_reason_is_cut_between_characters() {
    let reason = Reason::new(ReasonKind::Machine, "ä".repeat(MAX_TEXT_BYTES));
    assert_eq!(reason.text.len(), MAX_TEXT_BYTES);
    let reason = Reason::new(ReasonKind::Machine, format!("x{}", "ä".repeat(MAX_TEXT_BYTES)));
    assert_eq!(reason.text.len(), MAX_TEXT_BYTES - 1);
}
