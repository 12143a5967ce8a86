//! All sections of a machine, and the lookups of whoever restores it.

use std::collections::BTreeSet;

use crate::{Part, Section, StateError};

/// The most sections of one machine: room for a dozen parts of each of KVM's 4096 vCPUs.
pub const MAX_SECTIONS: usize = 65_536;

/// How many needed fields an error lists.
const LISTED_FIELDS: usize = 16;

/// All sections of a machine, in the order in which they were captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineState {
    /// The sections.
    pub sections: Vec<Section>,
}

impl MachineState {
    /// A state of these sections; refused are too many, and two of one name and index.
    pub fn from_sections(sections: Vec<Section>) -> Result<Self, StateError> {
        if sections.len() > MAX_SECTIONS {
            return Err(StateError::TooManySections { count: sections.len(), bound: MAX_SECTIONS });
        }
        let mut seen = BTreeSet::new();
        for section in &sections {
            if !seen.insert((section.name.as_str(), section.index)) {
                return Err(section.as_duplicate());
            }
        }
        Ok(Self { sections })
    }

    /// Refuses sections that this build does not know and the guest needs. Unknown sections in which
    /// nothing is needed pass: they are skipped.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<(), StateError> {
        let unknown =
            |section: &&Section| !section.needed.is_empty() && !known.contains(&section.name.as_str());
        match self.sections.iter().find(unknown) {
            None => Ok(()),
            Some(section) => Err(StateError::UnknownNeededSection {
                section: section.name.clone(),
                index: section.index,
                needed: section.needed.iter().copied().take(LISTED_FIELDS).collect(),
            }),
        }
    }

    /// The section of one name and index. Two of them are an error.
    pub fn section(&self, name: &str, index: u32) -> Result<Option<&Section>, StateError> {
        let mut found = self.sections.iter().filter(|s| s.index == index && s.name == name);
        let first = found.next();
        match found.next() {
            None => Ok(first),
            Some(second) => Err(second.as_duplicate()),
        }
    }

    /// The part of this index, if the state has it.
    pub fn find<T: Part>(&self, index: u32) -> Result<Option<T>, StateError> {
        self.section(T::NAME, index)?.map(Section::read).transpose()
    }

    /// The part of this index, which must be there.
    pub fn require<T: Part>(&self, index: u32) -> Result<T, StateError> {
        self.find(index)?.ok_or(StateError::MissingSection { section: T::NAME, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::{MpState, Regs};

    fn section(index: u32) -> Section {
        Section::of(&MpState { mp_state: 3 }, index, None).unwrap()
    }

    #[test]
    fn parts_are_found_by_type_and_index() {
        let state = MachineState::from_sections(vec![section(0), section(1)]).unwrap();
        assert_eq!(state.require::<MpState>(1).unwrap().mp_state, 3);
        assert!(state.find::<MpState>(2).unwrap().is_none());
        assert!(matches!(
            state.require::<Regs>(0),
            Err(StateError::MissingSection { section: "x86.regs", index: 0 })
        ));
    }

    #[test]
    fn a_section_twice_is_refused_even_without_the_first_check() {
        assert!(matches!(
            MachineState::from_sections(vec![section(0), section(0)]),
            Err(StateError::DuplicateSection { index: 0, .. })
        ));
        let state = MachineState { sections: vec![section(0), section(0)] };
        assert!(matches!(state.find::<MpState>(0), Err(StateError::DuplicateSection { .. })));
    }

    #[test]
    fn too_many_sections_are_refused() {
        let sections = (0..=u32::try_from(MAX_SECTIONS).unwrap())
            .map(|index| Section { name: "device/x".into(), index, needed: vec![], body: vec![0xa0] })
            .collect();
        assert!(matches!(MachineState::from_sections(sections), Err(StateError::TooManySections { .. })));
    }

    #[test]
    fn an_unknown_section_passes_until_it_is_needed() {
        let mut unknown = Section { name: "x86.new".into(), index: 4, needed: vec![], body: vec![0xa0] };
        let known = ["x86.mp_state"];
        let state = MachineState { sections: vec![section(0), unknown.clone()] };
        state.refuse_unknown(&known).unwrap();
        unknown.needed = vec![9];
        let state = MachineState { sections: vec![section(0), unknown] };
        assert!(matches!(
            state.refuse_unknown(&known),
            Err(StateError::UnknownNeededSection { section, index: 4, needed })
                if section == "x86.new" && needed == [9]
        ));
    }
}
