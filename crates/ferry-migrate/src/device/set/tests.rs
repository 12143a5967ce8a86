//! The set of devices: what it captures, restores and refuses, and how a step that fails is taken back.

use std::sync::{Arc, Mutex};

use super::*;
use crate::Saved;
use ferry_state::{Fields, Part};

/// What happened to devices, in order.
type Diary = Arc<Mutex<Vec<String>>>;

#[derive(Debug, Clone, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Level {
    #[n(0)]
    level: u8,
}

impl Part for Level {
    const NAME: &'static str = "device/level";
    const FIELDS: Fields = Fields::These(&[0]);
}

/// A device with one byte of state that writes down what it is told to do.
struct Level1 {
    name: &'static str,
    index: u32,
    part: Level,
    diary: Diary,
    fails_at: &'static str,
}

impl Level1 {
    fn new(name: &'static str, level: u8, diary: &Diary) -> Self {
        Self { name, index: 0, part: Level { level }, diary: Arc::clone(diary), fails_at: "" }
    }

    fn note(&self, step: &str) -> Result<(), MachineError> {
        self.diary.lock().unwrap().push(format!("{} {step}", self.name));
        if self.fails_at == step { Err(MachineError::new("it is stuck")) } else { Ok(()) }
    }
}

impl Device for Level1 {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn index(&self) -> u32 {
        self.index
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        Saved::part(&self.part, Some(&Level::default()))
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        // The part's own name is another one: several devices may hold the same part.
        let section = Section { name: Level::NAME.to_owned(), ..section.clone() };
        self.part = section.read().map_err(|error| MachineError::with_source("no level", error))?;
        Ok(())
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(())
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        self.note("quiesce")
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.note("resume")
    }
}

/// A device that implements no more than it must.
struct Bare {
    saves: Option<Saved>,
}

impl Device for Bare {
    fn name(&self) -> String {
        "bare".to_owned()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        match &self.saves {
            Some(saved) => Ok(saved.clone()),
            None => Forgetful.save(),
        }
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(())
    }
}

/// A device whose author forgot that it has a state.
struct Forgetful;

impl Device for Forgetful {
    fn name(&self) -> String {
        "forgetful".to_owned()
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(())
    }
}

fn text(error: &MachineError) -> String {
    sentence(error)
}

#[test]
fn each_device_gets_back_what_it_saved() {
    let diary = Diary::default();
    let second = Level1 { index: 1, ..Level1::new("level", 9, &diary) };
    let mut source = DeviceSet::new();
    source.add(Level1::new("level", 7, &diary)).unwrap();
    source.add(second).unwrap();
    source.add(Level1::new("other", 0, &diary)).unwrap();
    source.add(Bare { saves: Some(Saved::Nothing) }).unwrap();
    let state = source.capture().unwrap();
    let names: Vec<(&str, u32, usize)> =
        state.sections.iter().map(|s| (s.name.as_str(), s.index, s.needed.len())).collect();
    assert_eq!(
        names,
        [("device/level", 0, 1), ("device/level", 1, 1), ("device/other", 0, 0), ("device/bare", 0, 0)]
    );

    // In another order, one of them shared with vCPU threads.
    let shared = Arc::new(Mutex::new(Level1 { index: 1, ..Level1::new("level", 0, &diary) }));
    let mut target = DeviceSet::new();
    target.add(Bare { saves: None }).unwrap();
    target.add(Arc::clone(&shared)).unwrap();
    target.add(Level1::new("other", 3, &diary)).unwrap();
    target.add(Level1::new("level", 0, &diary)).unwrap();
    target.restore(&state).unwrap();
    assert_eq!(shared.lock().unwrap().part.level, 9);
}

#[test]
fn two_devices_of_one_name_and_names_that_cannot_be_are_refused() {
    let diary = Diary::default();
    let mut set = DeviceSet::new();
    set.add(Level1::new("level", 0, &diary)).unwrap();
    let twice = set.add(Level1::new("level", 1, &diary)).unwrap_err();
    assert!(twice.to_string().contains("`level` with index 0 already"), "{twice}");
    let long: &'static str = "x".repeat(58).leak();
    for name in ["", "Level", "a/b", "ö", long] {
        assert!(set.add(Level1::new(name, 0, &diary)).is_err(), "{name}");
    }
    set.add(Level1::new("x".repeat(57).leak(), 0, &diary)).unwrap();
    assert_eq!(set.capture().unwrap().sections.len(), 2);
}

#[test]
fn a_device_that_says_nothing_of_its_state_cannot_be_moved() {
    let mut set = DeviceSet::new();
    set.add(Forgetful).unwrap();
    let error = text(&set.capture().unwrap_err());
    assert!(error.contains("`forgetful`") && error.contains("its `save` is missing"), "{error}");
}

#[test]
fn a_device_that_restores_nothing_refuses_what_is_needed() {
    let diary = Diary::default();
    let mut source = DeviceSet::new();
    source.add(Level1::new("bare", 4, &diary)).unwrap();
    let mut target = DeviceSet::new();
    target.add(Bare { saves: None }).unwrap();
    let error = text(&target.restore(&source.capture().unwrap()).unwrap_err());
    assert!(error.contains("`bare`") && error.contains("[0]"), "{error}");
}

#[test]
fn unknown_devices_pass_until_something_of_them_is_needed() {
    let diary = Diary::default();
    for (level, passes) in [(0, true), (5, false)] {
        let mut source = DeviceSet::new();
        source.add(Level1::new("level", 1, &diary)).unwrap();
        source.add(Level1::new("newer", level, &diary)).unwrap();
        let mut target = DeviceSet::new();
        target.add(Level1::new("level", 0, &diary)).unwrap();
        let restored = target.restore(&source.capture().unwrap());
        assert_eq!(restored.is_ok(), passes);
        if let Err(error) = restored {
            assert!(
                error.to_string().contains("`device/newer` (index 0) and needs its fields [0]"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_device_whose_section_is_missing_is_named() {
    let diary = Diary::default();
    let mut source = DeviceSet::new();
    source.add(Level1::new("level", 1, &diary)).unwrap();
    let mut target = DeviceSet::new();
    target.add(Level1::new("level", 0, &diary)).unwrap();
    target.add(Level1::new("level-b", 0, &diary)).unwrap();
    target.add(Bare { saves: None }).unwrap();
    let error = target.restore(&source.capture().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`device/bare` (index 0), `device/level-b` (index 0)"), "{error}");
    // A state with one section twice is no state.
    let mut state = source.capture().unwrap();
    state.sections.push(state.sections[0].clone());
    let mut target = DeviceSet::new();
    target.add(Level1::new("level", 0, &diary)).unwrap();
    assert!(target.restore(&state).is_err());
}

#[test]
fn a_step_that_fails_is_taken_back_by_the_others() {
    let set = |fails_at: &'static str| {
        let diary = Diary::default();
        let mut set = DeviceSet::new();
        set.add(Level1::new("a", 0, &diary)).unwrap();
        set.add(Level1 { fails_at, ..Level1::new("b", 0, &diary) }).unwrap();
        set.add(Level1::new("c", 0, &diary)).unwrap();
        (set, diary)
    };
    let (mut fails, diary) = set("quiesce");
    let error = text(&fails.quiesce().unwrap_err());
    assert!(error.contains("`b`") && error.contains("it is stuck"), "{error}");
    assert_eq!(*diary.lock().unwrap(), ["a quiesce", "b quiesce", "a resume"]);
    let (mut fails, diary) = set("resume");
    fails.quiesce().unwrap();
    assert!(fails.resume().is_err());
    let steps = ["a quiesce", "b quiesce", "c quiesce", "c resume", "b resume", "c quiesce"];
    assert_eq!(*diary.lock().unwrap(), steps);
    let (mut works, diary) = set("");
    works.quiesce().unwrap();
    works.resume().unwrap();
    assert_eq!(diary.lock().unwrap()[3..], ["c resume", "b resume", "a resume"]);
}
