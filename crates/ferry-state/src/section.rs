//! One part of the state with its name, its index and its needed-mark, and the bytes of it all.
//!
//! The source writes sections with [`Section::of`] and [`Section::to_bytes`]; the target reads them
//! with [`Section::from_bytes`] and [`Section::read`]. A field is *needed* when its value is not what
//! a vCPU, VM or device of that kind holds right after creation on the source: the target must
//! apply it or refuse.

use minicbor::{Decoder, Encoder};

use crate::body::Body;
use crate::{Part, StateError};

/// The longest name of a section, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// The most needed fields of one section: as many as a body may have.
pub const MAX_NEEDED: usize = 4096;

/// The longest body of one section, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The longest section, in bytes: body, name, five bytes for each needed field, and the heads of it all.
pub const MAX_SECTION_BYTES: usize = MAX_BODY_BYTES + MAX_NAME_BYTES + 5 * MAX_NEEDED + 64;

/// One part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Section {
    /// What part: for example `x86.regs`, or `device/debug-port`.
    pub name: String,
    /// Which one of several: the vCPU's index, or 0 for what a VM has once.
    pub index: u32,
    /// Numbers of the fields whose value is not what a machine of that kind holds right after
    /// creation, ascending.
    pub needed: Vec<u32>,
    /// A CBOR map from field number to value, ascending by number.
    pub body: Vec<u8>,
}

impl Section {
    /// A section of this value. Needed are the fields whose bytes differ from the baseline's;
    /// without a baseline, all of them.
    pub fn of<T: Part>(value: &T, index: u32, baseline: Option<&T>) -> Result<Self, StateError> {
        let body = encode(value)?;
        if body.len() > MAX_BODY_BYTES {
            return Err(too_long(T::NAME, "the body", body.len(), MAX_BODY_BYTES));
        }
        let fields = scan_own::<T>(&body)?;
        let needed = match baseline {
            None => fields.numbers().collect(),
            Some(baseline) => {
                let created = encode(baseline)?;
                let created = scan_own::<T>(&created)?;
                let mut differing: Vec<u32> = fields
                    .numbers()
                    .chain(created.numbers())
                    .filter(|number| fields.field(*number) != created.field(*number))
                    .collect();
                differing.sort_unstable();
                differing.dedup();
                differing
            }
        };
        Ok(Self { name: T::NAME.to_owned(), index, needed, body })
    }

    /// The part that this section holds. Unknown fields are skipped when they are not needed; needed
    /// fields must be known, there, and read to the last byte.
    pub fn read<T: Part>(&self) -> Result<T, StateError> {
        if self.name != T::NAME {
            return Err(self.as_unknown());
        }
        self.check_bounds()?;
        let fields = Body::scan(&self.body).map_err(|error| self.body_error(error))?;
        for &field in &self.needed {
            let section = || self.name.clone();
            if !T::FIELDS.contains(field) {
                return Err(StateError::UnknownNeededField { section: section(), index: self.index, field });
            }
            if fields.field(field).is_none() {
                return Err(StateError::NeededFieldMissing { section: section(), index: self.index, field });
            }
        }
        let value: T = minicbor::decode(&self.body).map_err(|error| self.body_error(error.into()))?;
        value.check().map_err(|problem| StateError::Invalid {
            section: self.name.clone(),
            index: self.index,
            problem,
        })?;
        self.check_exact(&value, &fields)?;
        Ok(value)
    }

    /// Whether this field must be applied.
    pub fn needs(&self, field: u32) -> bool {
        self.needed.contains(&field)
    }

    /// The section's wire form: a CBOR map {0: name, 1: index, 2: needed, 3: body}.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.body.len() + self.name.len() + 5 * self.needed.len() + 64);
        // Writing to a Vec cannot fail.
        let _infallible = self.encode_into(&mut Encoder::new(&mut bytes));
        bytes
    }

    /// Reads a section's wire form. Bytes after its end, fields out of order and lengths over their
    /// bound are refused; the body is not looked into.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > MAX_SECTION_BYTES {
            return Err(too_long("(unread)", "the whole", bytes.len(), MAX_SECTION_BYTES));
        }
        let mut decoder = Decoder::new(bytes);
        let section = Self::decode_from(&mut decoder)?;
        if decoder.position() != bytes.len() {
            return Err(not_a_section("bytes after its end", decoder.position()));
        }
        section.check_bounds()?;
        Ok(section)
    }

    /// The error of a section that is there twice.
    pub(crate) fn as_duplicate(&self) -> StateError {
        StateError::DuplicateSection { section: self.name.clone(), index: self.index }
    }

    /// The error of a section of no known part.
    pub(crate) fn as_unknown(&self) -> StateError {
        StateError::UnknownSection { section: self.name.clone(), index: self.index }
    }

    fn encode_into(
        &self,
        encoder: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        encoder.map(4)?.u8(0)?.str(&self.name)?.u8(1)?.u32(self.index)?;
        encoder.u8(2)?.array(self.needed.len() as u64)?;
        for field in &self.needed {
            encoder.u32(*field)?;
        }
        encoder.u8(3)?.bytes(&self.body)?;
        Ok(())
    }

    fn decode_from(decoder: &mut Decoder<'_>) -> Result<Self, StateError> {
        if decoder.map().map_err(envelope)? != Some(4) {
            return Err(not_a_section("a section is a map of four fields", 0));
        }
        expect_key(decoder, 0)?;
        let name = decoder.str().map_err(envelope)?.to_owned();
        if !is_name(&name) {
            return Err(bad_name(&name));
        }
        expect_key(decoder, 1)?;
        let index = decoder.u32().map_err(envelope)?;
        expect_key(decoder, 2)?;
        let offset = decoder.position();
        let count = decoder.array().map_err(envelope)?;
        let count = count.ok_or_else(|| not_a_section("a list of indefinite length", offset))?;
        if count > MAX_NEEDED as u64 {
            let length = usize::try_from(count).unwrap_or(usize::MAX);
            return Err(too_long(&name, "the list of needed fields", length, MAX_NEEDED));
        }
        let mut needed = Vec::new();
        for _ in 0..count {
            needed.push(decoder.u32().map_err(envelope)?);
        }
        expect_key(decoder, 3)?;
        let body = decoder.bytes().map_err(envelope)?.to_vec();
        Ok(Self { name, index, needed, body })
    }

    /// Holds every length, the name's characters and the order of the needed fields.
    fn check_bounds(&self) -> Result<(), StateError> {
        if !is_name(&self.name) {
            return Err(bad_name(&self.name));
        }
        if self.body.len() > MAX_BODY_BYTES {
            return Err(too_long(&self.name, "the body", self.body.len(), MAX_BODY_BYTES));
        }
        if self.needed.len() > MAX_NEEDED {
            return Err(too_long(&self.name, "the list of needed fields", self.needed.len(), MAX_NEEDED));
        }
        if !self.needed.is_sorted_by(|a, b| a < b) {
            let (section, index) = (self.name.clone(), self.index);
            let problem = "the needed fields do not ascend".to_owned();
            return Err(StateError::Invalid { section, index, problem });
        }
        Ok(())
    }

    /// Makes sure that nothing inside a needed field was passed over: written again, it must give the
    /// same bytes.
    fn check_exact<T: Part>(&self, value: &T, received: &Body<'_>) -> Result<(), StateError> {
        if self.needed.is_empty() {
            return Ok(());
        }
        let again = encode(value)?;
        let again = scan_own::<T>(&again)?;
        match self.needed.iter().find(|field| received.field(**field) != again.field(**field)) {
            None => Ok(()),
            Some(&field) => {
                Err(StateError::NotExact { section: self.name.clone(), index: self.index, field })
            }
        }
    }

    fn body_error(&self, error: crate::body::BodyError) -> StateError {
        error.in_section(&self.name, self.index, self.body.len())
    }
}

/// Whether this is a name that a section may have.
fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

fn encode<T: Part>(value: &T) -> Result<Vec<u8>, StateError> {
    minicbor::to_vec(value)
        .map_err(|error| StateError::BadPart { section: T::NAME, problem: error.to_string() })
}

/// Cuts a body that this build wrote itself: it must hold the part's own fields and no others.
fn scan_own<T: Part>(body: &[u8]) -> Result<Body<'_>, StateError> {
    let bad = |problem| StateError::BadPart { section: T::NAME, problem };
    let fields = Body::scan(body).map_err(|error| bad(error.describe()))?;
    let foreign = fields.numbers().find(|number| !T::FIELDS.contains(*number));
    match foreign {
        None => Ok(fields),
        Some(number) => Err(bad(format!("field {number} is not in its list"))),
    }
}

fn expect_key(decoder: &mut Decoder<'_>, key: u32) -> Result<(), StateError> {
    let offset = decoder.position();
    if decoder.u32().map_err(envelope)? == key {
        Ok(())
    } else {
        Err(not_a_section("its fields are 0, 1, 2 and 3, in this order; another one", offset))
    }
}

fn envelope(source: minicbor::decode::Error) -> StateError {
    let offset = source.position().unwrap_or(0);
    StateError::NotASection { problem: "bad CBOR", offset, source: Some(source) }
}

fn not_a_section(problem: &'static str, offset: usize) -> StateError {
    StateError::NotASection { problem, offset, source: None }
}

fn bad_name(name: &str) -> StateError {
    StateError::BadName { name: name.chars().take(MAX_NAME_BYTES).collect() }
}

fn too_long(section: &str, what: &'static str, length: usize, bound: usize) -> StateError {
    StateError::TooLong { section: section.to_owned(), what, length, bound }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::{Clock, MpState, Regs};

    fn clock() -> Clock {
        Clock { clock: 5, flags: 2, realtime: 7, host_tsc: 9 }
    }

    #[test]
    fn needed_are_the_fields_that_differ_from_the_baseline() {
        let now = Clock { clock: 6, host_tsc: 10, ..clock() };
        assert_eq!(Section::of(&now, 0, Some(&clock())).unwrap().needed, [0, 3]);
        assert!(Section::of(&now, 0, Some(&now)).unwrap().needed.is_empty());
        assert_eq!(Section::of(&now, 0, None).unwrap().needed, [0, 1, 2, 3]);
    }

    #[test]
    fn an_unknown_field_passes_until_it_is_needed() {
        // {0: 3, 77: "x"}
        let body = vec![0xa2, 0x00, 0x03, 0x18, 0x4d, 0x61, 0x78];
        let mut section = Section { name: "x86.mp_state".into(), index: 1, needed: vec![0], body };
        assert_eq!(section.read::<MpState>().unwrap(), MpState { mp_state: 3 });
        section.needed.push(77);
        assert!(matches!(
            section.read::<MpState>(),
            Err(StateError::UnknownNeededField { section, index: 1, field: 77 }) if section == "x86.mp_state"
        ));
    }

    #[test]
    fn a_missing_field_is_refused_by_name() {
        let mut section = Section { name: "x86.mp_state".into(), index: 0, needed: vec![], body: vec![0xa0] };
        let Err(StateError::Malformed { source, .. }) = section.read::<MpState>() else {
            panic!("a missing field was taken");
        };
        assert!(source.to_string().contains("mp_state"), "{source}");
        section.needed = vec![0];
        assert!(matches!(section.read::<MpState>(), Err(StateError::NeededFieldMissing { field: 0, .. })));
    }

    #[test]
    fn bad_content_is_refused_with_its_place() {
        // {0: 3, 1: "x" cut}: the text claims more bytes than there are.
        let section = Section {
            name: "x86.clock".into(),
            index: 0,
            needed: vec![],
            body: vec![0xa2, 0x00, 0x03, 0x01, 0x7a, 0xff, 0xff, 0xff, 0xff],
        };
        assert!(matches!(section.read::<Clock>(), Err(StateError::Malformed { offset: 4..=9, .. })));
    }

    #[test]
    fn a_needed_field_with_more_in_it_than_this_build_reads_is_refused() {
        #[derive(minicbor::Encode, minicbor::Decode)]
        #[cbor(map)]
        struct Longer {
            #[n(0)]
            port: (u8, u8, u8),
        }
        impl Part for Longer {
            const NAME: &'static str = "device/port";
            const FIELDS: crate::Fields = crate::Fields::These(&[0]);
        }
        #[derive(Debug, minicbor::Encode, minicbor::Decode)]
        #[cbor(array)]
        struct Pair(#[n(0)] u8, #[n(1)] u8);
        #[derive(Debug, minicbor::Encode, minicbor::Decode)]
        #[cbor(map)]
        struct Shorter {
            #[n(0)]
            port: Pair,
        }
        impl Part for Shorter {
            const NAME: &'static str = "device/port";
            const FIELDS: crate::Fields = crate::Fields::These(&[0]);
        }
        let mut section = Section::of(&Longer { port: (1, 2, 3) }, 0, None).unwrap();
        assert!(matches!(section.read::<Shorter>(), Err(StateError::NotExact { field: 0, .. })));
        section.needed.clear();
        assert_eq!(section.read::<Shorter>().unwrap().port.1, 2);
    }

    #[test]
    fn a_part_that_does_not_list_its_fields_is_told_so() {
        #[derive(minicbor::Encode, minicbor::Decode)]
        #[cbor(map)]
        struct Sloppy {
            #[n(4)]
            value: u8,
        }
        impl Part for Sloppy {
            const NAME: &'static str = "device/sloppy";
            const FIELDS: crate::Fields = crate::Fields::These(&[0]);
        }
        assert!(matches!(Section::of(&Sloppy { value: 1 }, 0, None), Err(StateError::BadPart { .. })));
    }

    #[test]
    fn a_section_is_read_only_as_what_it_is() {
        let section = Section::of(&clock(), 0, None).unwrap();
        assert!(matches!(section.read::<Regs>(), Err(StateError::UnknownSection { .. })));
    }

    #[test]
    fn bad_envelopes_are_refused() {
        let good = Section::of(&clock(), 3, None).unwrap();
        let bytes = good.to_bytes();
        assert_eq!(Section::from_bytes(&bytes).unwrap(), good);
        for cut in 0..bytes.len() {
            assert!(Section::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Section::from_bytes(&longer), Err(StateError::NotASection { .. })));
        let bad_names = ["", "X86.regs", "x86 regs", &"x".repeat(MAX_NAME_BYTES + 1)];
        for name in bad_names {
            let bad = Section { name: name.to_owned(), ..good.clone() };
            assert!(
                matches!(Section::from_bytes(&bad.to_bytes()), Err(StateError::BadName { .. })),
                "{name}"
            );
        }
        let disorder = Section { needed: vec![2, 1], ..good.clone() };
        assert!(matches!(Section::from_bytes(&disorder.to_bytes()), Err(StateError::Invalid { .. })));
    }

    #[test]
    fn lengths_over_their_bounds_are_refused() {
        let good = Section::of(&clock(), 0, None).unwrap();
        let body = Section { body: vec![0; MAX_BODY_BYTES + 1], ..good.clone() };
        assert!(matches!(Section::from_bytes(&body.to_bytes()), Err(StateError::TooLong { .. })));
        assert!(matches!(body.read::<Clock>(), Err(StateError::TooLong { .. })));
        let needed = Section { needed: (0..=4096).collect(), ..good.clone() };
        assert!(matches!(Section::from_bytes(&needed.to_bytes()), Err(StateError::TooLong { .. })));
        let whole = vec![0; MAX_SECTION_BYTES + 1];
        assert!(matches!(Section::from_bytes(&whole), Err(StateError::TooLong { .. })));
        // {0: "x", 1: 0, 2: a list that claims 2^64 - 1 entries.
        let mut claim = vec![0xa4, 0x00, 0x61, b'x', 0x01, 0x00, 0x02, 0x9b];
        claim.extend([0xff; 8]);
        assert!(matches!(Section::from_bytes(&claim), Err(StateError::TooLong { .. })));
    }
}
