//! The faults of a plan, carried out.

use std::collections::VecDeque;

use ferry_protocol::{LinkFault, SourceEvent, TargetEvent, Time};

use crate::clock::Due;
use crate::guest::Custody;
use crate::network::{Down, Maker, Up};
use crate::plan::{Journals, Side, What};
use crate::source::with_under_way;
use crate::world::World;

impl World {
    /// The process of a side of the present move.
    fn side(&self, side: Side) -> Option<usize> {
        match side {
            Side::Source => Some(self.mover).filter(|&process| self.processes[process].alive),
            Side::Target => self.listener(1 - self.processes[self.mover].host),
        }
    }

    fn host(&self, side: Side) -> usize {
        match side {
            Side::Source => self.processes[self.mover].host,
            Side::Target => 1 - self.processes[self.mover].host,
        }
    }

    pub(crate) fn strike(&mut self, what: What) {
        let now = self.now;
        let later = |micros: u64| Time(now.0 + micros);
        match what {
            What::Cut { .. } => return self.cut(what),
            What::Kill { side, again_after_us, journals } => {
                return self.kill(side, again_after_us, journals);
            }
            What::PowerOff { side, again_after_us } => return self.power_off(side, again_after_us),
            What::Replay { move_back } => return self.send_again(move_back),
            What::Garble { to } => return self.garble(to),
            What::Stranger { words, same_name } => return self.visit(words, same_name),
            _ => {}
        }
        self.story.tell(now, || what.to_string());
        match what {
            What::Hold { side, for_us } => {
                let host = self.host(side);
                self.network.held[host] = later(for_us);
                self.agenda.enter(later(for_us), Due::Stir);
            }
            What::Slow { factor, for_us } => self.network.slower = (factor, later(for_us)),
            What::Stop { side, for_us } => self.stop(side, later(for_us)),
            What::Fail { side } => self.fail_next(side),
            What::Cancel { side } => self.cancel(side),
            What::Rate { rate } => {
                for guest in self.processes.iter_mut().filter_map(|process| process.guest.as_mut()) {
                    let _ = guest.catch_up(now);
                    guest.rate = rate;
                }
            }
            What::DiskFails { side, for_us, written } => {
                let host = self.host(side);
                self.disks[host].fail(later(for_us), written);
            }
            What::DiskSlow { side, by_us } => {
                let host = self.host(side);
                self.disks[host].slow_down(later(by_us * 2), by_us);
            }
            What::Witness { side, for_us } => {
                let host = self.host(side);
                if let Some(witness) = &mut self.witness {
                    witness.lose(host, later(for_us));
                }
            }
            _ => {}
        }
    }

    fn cut(&mut self, what: What) {
        let What::Cut { keep_down, keep_up, tell_source, tell_target } = what else { return };
        let Some(link) = self.link_of_the_move() else { return };
        let now = self.now;
        let this = &mut self.links[link];
        let mut lost = this.down.cut(keep_down);
        lost.extend(this.up.cut(keep_up));
        let fault = || LinkFault::Failed("the link broke".into());
        let told = [
            tell_target.then(|| this.down.tell(now, fault())).flatten().map(|at| (at, Due::Down(link))),
            tell_source.then(|| this.up.tell(now, fault())).flatten().map(|at| (at, Due::Up(link))),
        ];
        for (at, due) in told.into_iter().flatten() {
            self.agenda.enter(at, due);
        }
        self.story.tell(now, || format!("{what}{}", with_under_way(&lost)));
    }

    fn garble(&mut self, to: Side) {
        let Some(link) = self.link_of_the_move() else { return };
        let (now, this) = (self.now, &mut self.links[link]);
        let garbled = match to {
            Side::Target => this.down.garble(now).map(|at| (at, Due::Down(link))),
            Side::Source => this.up.garble(now).map(|at| (at, Due::Up(link))),
        };
        if let Some((at, due)) = garbled {
            self.story.tell(now, || What::Garble { to }.to_string());
            self.agenda.enter(at, due);
        }
    }

    fn stop(&mut self, side: Side, until: Time) {
        let now = self.now;
        let Some(process) = self.side(side) else { return };
        let this = &mut self.processes[process];
        this.awake_at = this.awake_at.max(until);
        if let Some(guest) = &mut this.guest {
            let _ = guest.catch_up(now);
            guest.rest(until);
        }
        self.agenda.enter(until, Due::Stir);
    }

    fn fail_next(&mut self, side: Side) {
        let Some(process) = self.side(side) else { return };
        let this = &mut self.processes[process];
        match (side, &mut this.source, &mut this.target) {
            (Side::Source, Some(source), _) => source.fail_next = true,
            (Side::Target, _, Some(target)) => target.fail_next = true,
            _ => {}
        }
    }

    fn cancel(&mut self, side: Side) {
        let Some(process) = self.side(side).filter(|&process| !self.is_away(process)) else { return };
        match side {
            Side::Source => self.feed_source(process, SourceEvent::Cancel),
            Side::Target => self.feed_target(process, TargetEvent::Cancel),
        }
    }

    fn kill(&mut self, side: Side, again_after: u64, journals: Journals) {
        let Some(process) = self.side(side) else { return };
        let (name, host, instance) = {
            let this = &self.processes[process];
            (this.name.clone(), this.host, this.instance)
        };
        self.story.tell(self.now, || format!("the process {name} dies"));
        self.end_process(process, true);
        match journals {
            Journals::Stay => {}
            Journals::Damaged => {
                self.story.tell(self.now, || format!("the journal of {name} is damaged"));
                self.disks[host].damage(instance);
            }
            Journals::Elsewhere => {
                self.story.tell(self.now, || "who listens there next keeps its journals elsewhere".into());
                self.folders[host] += 1;
            }
        }
        self.agenda.enter(Time(self.now.0 + again_after), Due::Listen(host));
    }

    fn power_off(&mut self, side: Side, again_after: u64) {
        let host = self.host(side);
        self.story.tell(self.now, || format!("the {side}'s host loses power"));
        let mut under_way = None;
        for process in 0..self.processes.len() {
            if self.processes[process].alive && self.processes[process].host == host {
                let this = &self.processes[process];
                let record = this.target.as_ref().and_then(|target| target.writing.front());
                under_way = record.map(|job| (this.instance, job.what.clone())).or(under_way);
                self.end_process(process, false);
            }
        }
        // The record whose sync is under way is on the disk, or it is not.
        let kept = under_way.filter(|_| self.persons_dice.chance(50));
        self.disks[host].lose_power(kept);
        self.dark[host] = true;
        self.agenda.enter(Time(self.now.0 + again_after), Due::Listen(host));
    }

    /// A process that has nothing to do any more ends.
    pub(crate) fn exit(&mut self, process: usize) {
        self.end_process(process, true);
    }

    /// The process ends, and what ran in it. Its kernel tells the others, unless that is gone too.
    fn end_process(&mut self, process: usize, tells: bool) {
        let now = self.now;
        let has_claimed = self.has_claimed(process);
        let this = &mut self.processes[process];
        (this.alive, this.ended_at) = (false, now);
        let custody = this.guest.take().map_or(Custody::None, |guest| guest.custody);
        let died = custody != Custody::None;
        let host = this.host;
        (this.source, this.target) = (None, None);
        self.guest_died |= died || has_claimed;
        if died {
            self.agenda_rebirth(process);
        }
        if self.lock == Some(process) {
            self.lock = None;
        }
        if self.address[host] == Some(process) {
            self.address[host] = None;
        }
        for link in 0..self.links.len() {
            let (is_maker, is_target) =
                (self.links[link].maker == Maker::Source(process), self.links[link].target == process);
            if is_maker {
                self.links[link].up.shut();
                if tells {
                    self.send_down(link, now, Down::Lost(LinkFault::Closed));
                } else {
                    self.links[link].down.cut(usize::MAX);
                }
            }
            if is_target {
                self.links[link].down.shut();
                if tells {
                    self.send_up(link, now, Up::Lost(LinkFault::Closed));
                } else {
                    self.links[link].up.cut(usize::MAX);
                }
            }
        }
    }

    /// Somebody opens a link, says little and goes away.
    fn visit(&mut self, words: usize, same_name: bool) {
        let Some(target) = self.side(Side::Target) else { return };
        self.story.tell(self.now, || "a stranger opens a link to the target".into());
        let said = self.words_of_a_stranger(words, same_name);
        let maker = if same_name { Maker::Listener } else { Maker::Stranger };
        let link = self.open(maker, self.host(Side::Source), target);
        for message in said {
            self.send_down(link, self.now, Down::Message(message));
        }
        self.send_down(link, self.now, Down::Lost(LinkFault::Closed));
    }

    /// Somebody who listened sends everything of an earlier link once more.
    fn send_again(&mut self, move_back: u32) {
        let Some(target) = self.side(Side::Target) else { return };
        let host = self.processes[target].host;
        let recorded = self.links.iter().rev().filter(|link| {
            self.processes[link.target].host == host
                && matches!(link.maker, Maker::Source(_))
                && !link.record.is_empty()
        });
        let Some(record) =
            recorded.map(|link| link.record.clone()).nth(usize::try_from(move_back).unwrap_or(0))
        else {
            return;
        };
        let name = self.processes[target].name.clone();
        self.story.tell(self.now, || format!("a stranger sends an earlier session to {name} once more"));
        let link = self.open(Maker::Listener, self.host(Side::Source), target);
        self.links[link].replay = VecDeque::from(record);
        self.replay(link);
    }
}
