//! How processes begin: with a guest that is born, or waiting for one; and how a guest whose process
//! died is started again.

use std::collections::BTreeSet;

use ferry_protocol::journal::{OfGuest, Past, Record};
use ferry_protocol::{Epoch, InstanceId, Target, Time};
use ferry_sim::{SimConfig, Workload};

use crate::clock::Due;
use crate::guest::{Custody, Guest};
use crate::process::{Process, TargetSide};
use crate::world::{World, guest_id, timeouts};

const PAGE_BYTES: u64 = 4096;

/// How long a user may take to start a guest again whose process died, in microseconds.
const STARTED_AGAIN: u64 = 20_000;

impl World {
    /// The first process of all, with the guest.
    pub(crate) fn begin(&mut self) {
        let first = self.start_process(0);
        self.give_birth(first, Epoch::BIRTH);
    }
    /// A new process on a host, which has read the journals of those before it.
    fn start_process(&mut self, host: usize) -> usize {
        let number = self.processes.len();
        let life = 1 + self.processes.iter().filter(|process| process.host == host).count();
        let letter = if host == 0 { 'A' } else { 'B' };
        self.dark[host] = false;
        self.processes.push(Process {
            name: format!("{letter}{life}"),
            host,
            folder: self.folders[host],
            instance: InstanceId(1000 + number as u64),
            alive: true,
            ended_at: Time::ZERO,
            awake_at: Time::ZERO,
            last_epoch: Epoch::BIRTH,
            guest: None,
            source: None,
            target: None,
        });
        number
    }

    /// The guest is born in a process, or that fails and the process ends.
    fn give_birth(&mut self, process: usize, epoch: Epoch) {
        let base = self.plan.base.clone();
        let workload = Workload::Churn {
            working_set_bytes: base.working_pages * PAGE_BYTES,
            rate_bytes_per_second: (base.rate * PAGE_BYTES).max(PAGE_BYTES),
        };
        let config = SimConfig { seed: self.plan.seed, memory_bytes: base.pages * PAGE_BYTES, workload };
        let is_free = self.lock.is_none().then_some(()).ok_or_else(|| "its lock is held".to_owned());
        let born = is_free.and_then(|()| {
            let guest = guest_id().ok_or("it has no name")?;
            self.write(process, Record::Born(OfGuest { guest, epoch }))?;
            Guest::born(config, base.rate).map_err(|error| error.to_string())
        });
        match born {
            Ok(mut guest) => {
                guest.custody = Custody::Here(epoch);
                guest.run(self.now);
                self.processes[process].guest = Some(guest);
                self.processes[process].last_epoch = epoch;
                self.lock = self.locks.then_some(process);
                (self.guest_died, self.born_at) = (false, self.now);
                if let Some(witness) = &mut self.witness {
                    witness.register(process, epoch);
                }
                self.tally.births += 1;
                self.note_born(process);
                self.note_runs(process, epoch);
            }
            Err(text) => {
                self.story.tell(self.now, || format!("the guest is not started: {text}"));
                self.exit(process);
            }
        }
    }

    /// The guest died with its process: its user may start it again there.
    pub(crate) fn agenda_rebirth(&mut self, process: usize) {
        if self.persons_dice.chance(60) {
            let after = self.persons_dice.below(STARTED_AGAIN);
            self.births_due += 1;
            self.agenda.enter(Time(self.now.0 + after), Due::Birth(process));
        }
    }

    /// The user starts the guest again on the host where its process `dead` died. What the program knows
    /// is in the journals there: if custody may have been given away, or was taken and not released, it
    /// refuses, and a person looks.
    pub(crate) fn rebirth(&mut self, dead: usize) {
        self.births_due = self.births_due.saturating_sub(1);
        let (host, folder) = (self.processes[dead].host, self.processes[dead].folder);
        // Users know of each other, so a guest that was started since then is not started here as well.
        let is_late = self.born_at > self.processes[dead].ended_at;
        if self.folders[host] != folder || is_late {
            return;
        }
        let process = self.start_process(host);
        let past = self.past_of(process);
        let Some(guest) = guest_id() else { return };
        let histories = || past.lives().filter_map(|(_, life)| life.guest(&guest));
        if past.lives().any(|(_, life)| life.is_partial()) {
            self.story.tell(self.now, || "a damaged journal keeps the guest from being started again".into());
            return self.exit(process);
        }
        if histories().any(ferry_protocol::journal::GuestHistory::is_open) {
            self.story
                .tell(self.now, || "the journals there are open about the guest: a person looks".into());
            self.tally.asked += 1;
            if !self.may_be_started(process) {
                return self.exit(process);
            }
        }
        let name = self.processes[process].name.clone();
        self.story.tell(self.now, || format!("the user starts the guest again in {name}"));
        // The witness's record is above what its claims raised the guest to.
        let stands = self.witness.as_ref().map(|witness| witness.stands().next());
        let epoch = past.birth(&guest).max(stands.unwrap_or(Epoch::BIRTH));
        self.give_birth(process, epoch);
    }

    /// What a person sees who looks at both hosts: whether nobody has the guest. Who could still take it
    /// is ended first.
    fn may_be_started(&mut self, process: usize) -> bool {
        let has_it = |other: &Process| {
            other.alive && other.guest.as_ref().is_some_and(|guest| guest.custody != Custody::None)
        };
        if self.processes.iter().any(has_it) {
            return false;
        }
        for other in 0..self.processes.len() {
            let builds =
                self.processes[other].target.as_ref().is_some_and(|target| target.incoming.is_some());
            if other != process && self.processes[other].alive && builds {
                let name = self.processes[other].name.clone();
                self.story.tell(self.now, || format!("a person ends the process {name}"));
                self.exit(other);
            }
        }
        true
    }

    /// The journals of the processes before this one that kept them in the same folder.
    fn past_of(&self, process: usize) -> Past {
        let Process { host, folder, .. } = self.processes[process];
        let is_gone = |other: &&Process| !other.alive && other.folder == folder;
        let gone: BTreeSet<_> = self.processes.iter().filter(is_gone).map(|other| other.instance).collect();
        self.disks[host].past(|instance| gone.contains(&instance))
    }

    /// A process listens on a host, if none does.
    pub(crate) fn listen(&mut self, host: usize) {
        if self.listener(host).is_some() {
            return;
        }
        let process = self.start_process(host);
        let past = self.past_of(process);
        let instance = self.processes[process].instance;
        let mut machine = Target::new(instance, None, timeouts()).with_past(past).with_rules(self.rules);
        if self.witness.is_some() {
            machine = machine.with_witness();
        }
        self.processes[process].target = Some(TargetSide::new(machine));
        self.address[host] = Some(process);
        let name = self.processes[process].name.clone();
        self.story.tell(self.now, || format!("{name} listens"));
    }
}
