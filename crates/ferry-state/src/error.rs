//! What can be wrong with a state, in the words of the section that is wrong.

/// A state that could not be written, read or accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes are not a section.
    #[error("not a section of a state: {problem} at byte {offset}")]
    NotASection {
        /// What is wrong.
        problem: &'static str,
        /// Where in the section's bytes.
        offset: usize,
        /// What the decoder found, where it was the decoder.
        #[source]
        source: Option<minicbor::decode::Error>,
    },
    /// A length is over its bound.
    #[error("{what} of section {section} is {length} long, the bound is {bound}")]
    TooLong {
        /// The section's name, or what is known of it.
        section: String,
        /// What is too long.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// The bound.
        bound: usize,
    },
    /// A section's name is empty, too long, or has characters that names do not have.
    #[error("a section's name has 1 to {bound} characters of a-z, 0-9, '.', '_', '-' and '/'; this one is {name:?}", bound = crate::MAX_NAME_BYTES)]
    BadName {
        /// The name, cut to a readable length.
        name: String,
    },
    /// A section's body is not the CBOR that its part asks for.
    #[error("section {section}, index {index}: bad content at byte {offset}")]
    Malformed {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// Where in the body.
        offset: usize,
        /// What the decoder found; it names a field that is missing.
        #[source]
        source: minicbor::decode::Error,
    },
    /// Field numbers do not ascend: one comes twice, or they are out of order.
    #[error("section {section}, index {index}: field {field} comes twice or out of order at byte {offset}")]
    FieldOrder {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// The field that does not come after the one before it.
        field: u32,
        /// Where in the body.
        offset: usize,
    },
    /// A needed field that this build does not know.
    #[error(
        "section {section}, index {index}: the guest needs field {field}, which this build does not know"
    )]
    UnknownNeededField {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// The field's number.
        field: u32,
    },
    /// A field is marked as needed but not there.
    #[error("section {section}, index {index}: field {field} is marked as needed but is not in the body")]
    NeededFieldMissing {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// The field's number.
        field: u32,
    },
    /// A needed field holds more than this build reads, or is not in the canonical form.
    #[error(
        "section {section}, index {index}: this build cannot read all of field {field}, which the guest needs"
    )]
    NotExact {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// The field's number.
        field: u32,
    },
    /// A value that no vCPU, VM or device can hold.
    #[error("section {section}, index {index}: {problem}")]
    Invalid {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// What is wrong.
        problem: String,
    },
    /// A part wrote something that is no map of its own fields: a mistake in the part.
    #[error("part {section} does not encode as a map of its own fields: {problem}")]
    BadPart {
        /// The part's name.
        section: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A section that must be there is not.
    #[error("the state has no section {section}, index {index}")]
    MissingSection {
        /// The section's name.
        section: &'static str,
        /// The section's index.
        index: u32,
    },
    /// A section is there twice.
    #[error("the state has section {section}, index {index} twice")]
    DuplicateSection {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
    },
    /// A section that this build does not know.
    #[error("this build does not know section {section}, index {index}")]
    UnknownSection {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
    },
    /// A section that the guest needs and this build does not know.
    #[error(
        "the guest needs section {section}, index {index} (its fields {needed:?}), which this build does not know"
    )]
    UnknownNeededSection {
        /// The section's name.
        section: String,
        /// The section's index.
        index: u32,
        /// The first few needed fields.
        needed: Vec<u32>,
    },
    /// More sections than a machine can have.
    #[error("the state has {count} sections, the bound is {bound}")]
    TooManySections {
        /// How many there are.
        count: usize,
        /// The bound.
        bound: usize,
    },
}
