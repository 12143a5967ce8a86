//! A schedule in plain words.

use std::fmt;

use ferry_protocol::journal::Record;

use super::links::Item;
use super::moves::Move;
use super::world::World;

impl World {
    /// A step in plain words, told of the state before it.
    pub(crate) fn tell(&self, one: Move) -> String {
        let instance = |life: usize| self.lives[life].instance.0;
        let link = |number: u64| &self.links[&number];
        let leads = |number: u64| instance(link(number).life);
        match one {
            Move::Failing(trigger, _) => format!("{}; a job that follows fails", self.tell(trigger.into())),
            Move::ToTarget(n) => format!("target {} gets {}", leads(n), item(&link(n).to_target.queue[0])),
            Move::ToSource(n) => format!("the source gets {}", item(&link(n).to_source.queue[0])),
            Move::OvertakeToTarget(n, place) => {
                format!("target {} gets too early {}", leads(n), item(&link(n).to_target.queue[place]))
            }
            Move::OvertakeToSource(n, place) => {
                format!("the source gets too early {}", item(&link(n).to_source.queue[place]))
            }
            Move::DoubleToTarget(n) => {
                format!("target {} gets {}, and will again", leads(n), item(&link(n).to_target.queue[0]))
            }
            Move::DoubleToSource(n) => {
                format!("the source gets {}, and will again", item(&link(n).to_source.queue[0]))
            }
            Move::LoseToTarget(n) => {
                format!("lost on its way to target {}: {}", leads(n), item(&link(n).to_target.queue[0]))
            }
            Move::LoseToSource(n) => {
                format!("lost on its way to the source: {}", item(&link(n).to_source.queue[0]))
            }
            Move::Cut { link: n, keep_to_target, keep_to_source } => {
                let fate = |keep| if keep { "arrives later" } else { "is lost" };
                format!(
                    "the link to target {} breaks; what is under way to the target {}, to the source {}",
                    leads(n),
                    fate(keep_to_target),
                    fate(keep_to_source)
                )
            }
            Move::Replay(n) => {
                format!("somebody repeats all that attempt {} said", self.source.gave[n].of.session.0)
            }
            Move::SourceJob => format!("the source's job is done: {}", name(&self.source.jobs[0])),
            Move::FailSourceJob => format!("the source's job fails: {}", name(&self.source.jobs[0])),
            Move::TargetJob(n) => {
                format!("target {}'s job is done: {}", instance(n), name(&self.lives[n].jobs[0]))
            }
            Move::FailTargetJob(n) => {
                format!("target {}'s job fails: {}", instance(n), name(&self.lives[n].jobs[0]))
            }
            Move::SourceTick => "a wait of the source is over".into(),
            Move::TargetTick(n) => format!("a wait of target {} is over", instance(n)),
            Move::StartTarget => "a new process listens at the target's address".into(),
            Move::Succeed => "another process takes over the target's address; the first one lives on".into(),
            Move::CancelSource => "the user cancels on the source".into(),
            Move::CancelTarget(n) => format!("the user cancels on target {}", instance(n)),
            Move::LoseSourceClaim => "the source's claim never reaches the witness".into(),
            Move::LoseTargetClaim(n) => format!("target {}'s claim never reaches the witness", instance(n)),
            Move::TargetWrite(n) => {
                format!("target {} has on disk: {}", instance(n), record(&self.lives[n].writes[0]))
            }
            Move::FailTargetWrite(n) => {
                format!("target {} cannot write: {}", instance(n), record(&self.lives[n].writes[0]))
            }
            Move::Decide(choice) => format!("a person decides: {choice}"),
            Move::Birth => "a person starts the guest anew on the source's host".into(),
            Move::KillSource { written } => format!("the source's process dies{}", just(written)),
            Move::KillTarget { life, written } => {
                format!("target {}'s process dies{}", instance(life), just(written))
            }
            Move::Retry => "the guest is tried to be moved again".into(),
        }
    }
}

fn item<M: fmt::Debug>(item: &Item<M>) -> String {
    match item {
        Item::Lost => "the end of the link".into(),
        Item::Message(message) => format!("`{}`", name(message)),
    }
}

/// The name of a value's variant.
fn name(value: &impl fmt::Debug) -> String {
    let text = format!("{value:?}");
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    text[..end].to_owned()
}

fn record(record: &Record) -> String {
    format!("{} of epoch {}", name(record), record.epoch())
}

fn just(written: bool) -> &'static str {
    if written { ", what it was writing is on disk" } else { "" }
}
