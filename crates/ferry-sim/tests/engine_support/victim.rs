//! A reception, and what a hostile source needs to get far with it.

use ferry_memory::PAGE_SIZE;
use ferry_migrate::Machine;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{MemoryHash, Offer, RoundEnd, StateEnd, ToSource, ToTarget};
use ferry_protocol::{Cause, Timeouts};
use ferry_sim::{SimConfig, SimMachine, SimOptions, Workload};
use ferry_state::{ResourceName, Resources, Section};

use super::{
    CHURN, Leaks, Raw, Transport, Waiting, frame, fresh_address, hello, is_a_sentence, is_undisturbed,
    move_to, pages, running, to_target, zeros,
};

/// Eight pages, four of them the workload's.
pub(crate) const TINY: SimConfig = SimConfig {
    seed: 3,
    memory_bytes: 8 * PAGE_SIZE,
    workload: Workload::Churn { working_set_bytes: 4 * PAGE_SIZE, rate_bytes_per_second: 4096 },
};

/// A reception and what a hostile source needs to get far with it.
pub(crate) struct Victim {
    pub(crate) waiting: Waiting,
    pub(crate) epoch: u64,
    pub(crate) guest: SimMachine,
    pub(crate) leaks: Leaks,
}

impl Victim {
    pub(crate) fn new(transport: Transport, timeouts: Timeouts) -> Self {
        let leaks = Leaks::now();
        let folder = tempfile::tempdir().unwrap();
        let at = fresh_address(transport, folder.path());
        let waiting = Waiting::at(&at, SimOptions::default(), timeouts);
        // The folder goes, the socket's name with it; who knows the open listener needs no more.
        let _kept = folder.keep();
        let guest = SimMachine::born(TINY, SimOptions::default()).unwrap();
        Self { waiting, epoch: 1, guest, leaks }
    }

    pub(crate) fn connect(&self) -> Raw {
        Raw::connect(&self.waiting.address)
    }

    /// A session in which the target awaits the offer.
    pub(crate) fn greeted(&mut self) -> Raw {
        self.epoch += 1;
        let mut peer = self.connect();
        peer.tell(&ToTarget::Hello(hello("guest", self.epoch)));
        // A target that has just ended a session may still be freeing it.
        assert!(matches!(peer.hear(), Some(ToSource::Hello(_))));
        peer
    }

    /// A session in which the machine stands and pages are awaited.
    pub(crate) fn built(&mut self, verify: bool) -> Raw {
        let mut peer = self.greeted();
        peer.tell(&ToTarget::Offer(Offer { verify, ..Offer::plain(self.guest.description()) }));
        assert!(matches!(peer.hear(), Some(ToSource::Verdict(_))));
        assert_eq!(peer.hear(), Some(ToSource::Built));
        peer
    }

    /// What the target says of the session that `act` makes; it ends with the session.
    pub(crate) fn cause(&mut self, act: impl FnOnce(&mut Self) -> Raw) -> Cause {
        let before = self.waiting.seen.sessions();
        let peer = act(self);
        let cause = self.waiting.seen.not_taken(before);
        is_a_sentence(&cause.to_string());
        drop(peer);
        cause
    }

    /// After all of it a real guest is taken, and nothing is left of the rest.
    pub(crate) fn takes_a_guest(self) {
        assert!(!self.waiting.is_over());
        let mut machine = running(CHURN, SimOptions::default());
        move_to(&mut machine, &self.waiting.address, 1000);
        let mut arrived = self.waiting.arrived();
        is_undisturbed(&mut arrived.machine);
        drop((arrived, machine));
        self.leaks.none();
    }
}

pub(crate) fn round_end(round: u32, data_pages: u64, zero_pages: u64, last: bool) -> Vec<u8> {
    to_target(&ToTarget::RoundEnd(RoundEnd { round, data_pages, zero_pages, last }))
}

pub(crate) fn data(pages: usize) -> Vec<u8> {
    (0..=250).cycle().take(pages * 4096).collect()
}

/// The frames of a whole transfer after the word that the machine stands: two rounds, the hash, the
/// state.
pub(crate) fn transfer(guest: &mut SimMachine) -> Vec<Vec<u8>> {
    let content = data(3);
    guest.ram().write(PAGE_SIZE, &content).unwrap();
    let blake3 = guest.ram().hash().unwrap();
    let mut frames = vec![
        zeros(0, &[(0, 1), (4, 4)]),
        pages(0, &[(1, 3)], &content, false),
        round_end(0, 3, 5, false),
        pages(1, &[(1, 1), (3, 1)], &[&content[..4096], &content[8192..]].concat(), true),
        round_end(1, 2, 0, true),
        to_target(&ToTarget::MemoryHash(MemoryHash { blake3 })),
    ];
    let state = [guest.capture().unwrap(), guest.capture_devices().unwrap()];
    frames.push(released(&[]));
    let sections = state.iter().flat_map(|state| &state.sections);
    frames.extend(sections.map(|section| frame(FrameKind::Section, &section.to_bytes())));
    frames.push(to_target(&ToTarget::StateEnd(StateEnd { sections: 3 })));
    frames
}

/// What the source let go of, as kinds and names.
pub(crate) fn released(names: &[(&str, &str)]) -> Vec<u8> {
    let name = |(kind, name): &(&str, &str)| ResourceName { kind: (*kind).into(), name: (*name).into() };
    let released = Resources { released: names.iter().map(name).collect() };
    let section = Section::of(&released, 0, Some(&Resources::default())).unwrap();
    frame(FrameKind::Section, &section.to_bytes())
}
