//! Bodies over `ferry-state`: sections, and the parts in them.

use std::fmt::Debug;
use std::time::Duration;

use ferry_state::{Fields, MachineState, Part, Section, decode_known};

/// How long a guest's clocks catch up: beyond what a count of 32 bits holds.
const PASSED: Duration = Duration::from_secs(1 << 20);

/// A section as it lies in a stream, and then the part in it, and what becomes of it when time catches up.
pub fn section(bytes: &[u8]) {
    let Ok(section) = Section::from_bytes(bytes) else { return };
    let again = Section::from_bytes(&section.to_bytes());
    assert_eq!(again.ok().as_ref(), Some(&section), "a section changed on the way");
    // Whether the part is known and well formed is the peer's affair; reading it must end well.
    let _refused_or_read = decode_known(&section);
    let _refused_or_moved_on = MachineState { sections: vec![section] }.catch_up(PASSED);
}

/// The body of one part: as a section in which nothing is needed, and as one in which everything is.
pub fn part<T: Part + PartialEq + Debug>(bytes: &[u8]) {
    let everything = match T::FIELDS {
        Fields::These(numbers) => numbers.to_vec(),
        Fields::Any => Vec::new(),
    };
    for needed in [Vec::new(), everything] {
        let section = Section { name: T::NAME.to_owned(), index: 0, needed, body: bytes.to_vec() };
        let Ok(value) = section.read::<T>() else { continue };
        let again = Section::of(&value, 0, None).and_then(|section| section.read::<T>());
        assert_eq!(again.ok().as_ref(), Some(&value), "{} changed on the way", T::NAME);
    }
}
