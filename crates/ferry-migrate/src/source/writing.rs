//! What the source's pump writes down, claims and takes back.

use std::time::Instant;

use ferry_protocol::journal::Record;
use ferry_protocol::message::{Known, OfEpoch, ToSource, ToTarget};
use ferry_protocol::{Claim, ClaimAnswer, Epoch, SourceEvent, SourcePhase};

use super::{Holder, Machine, Pump, sentence};
use crate::report::Word;

impl<M: Machine + ?Sized> Pump<'_, M> {
    /// The guest runs while this waits for the disk, or it is paused already because nobody answers.
    pub(super) fn journal(&mut self, record: &Record) {
        let began = Instant::now();
        let written = self.options.journal.write(record);
        self.figures.journaled(began.elapsed());
        if let Record::Decided(_) = record {
            // What the target said before the choice was on disk goes before it.
            while let Ok(incoming) = self.events.try_recv() {
                self.pending.extend(self.heard(incoming));
            }
        }
        self.pending.push_back(match written {
            Ok(()) => SourceEvent::Journaled,
            Err(error) => SourceEvent::Failed(sentence(&error)),
        });
    }

    /// That the guest moved lasts before the target hears that it was let go: nobody may be there any more
    /// who could answer for it. The guest runs there meanwhile.
    pub(super) fn note(&self, record: &Record) {
        let Record::Moved(_) = record else { return self.options.journal.note(record) };
        if let Err(error) = self.options.journal.write(record) {
            tracing::warn!(error = sentence(&error), "that the guest moved");
        }
    }

    /// The message and the consumption of the custody are one step: whatever becomes of the message,
    /// there is nothing here any more that could run the guest.
    pub(super) fn give(&mut self, of: OfEpoch) {
        self.figures.custody_given();
        match std::mem::replace(&mut self.holder, Holder::Gone) {
            Holder::Pump(custody) => {
                self.holder = Holder::Target(custody.give());
                match (&mut self.sink, &self.peer) {
                    (Some(sink), Some(peer)) => self.pending.push_back(sink.give(of, peer.socket())),
                    _ => self.send(&ToTarget::Custody(of)),
                }
            }
            other => self.holder = other,
        }
    }

    pub(super) fn claim(&mut self, claim: &Claim) {
        let answer = self.options.witness.as_ref().map_or_else(
            || ClaimAnswer::Unreached("this process was given no witness".into()),
            |witness| witness.claim(claim, self.options.journal.instance()),
        );
        self.pending.push_back(SourceEvent::Claimed(answer));
    }

    /// No disk is waited for: what keeps later guests of this name from being born under a higher epoch is
    /// on disk already, in a person's choice or in the witness's record.
    pub(super) fn take_back(&mut self, raise_to: Option<Epoch>) {
        self.holder = match std::mem::replace(&mut self.holder, Holder::Gone) {
            Holder::Target(given) => Holder::Pump(given.back(raise_to)),
            other => other,
        };
        self.raised = raise_to;
    }

    /// Tells what came of the questions who runs the guest.
    pub(super) fn tell_word(&self, event: &SourceEvent) {
        if self.source.phase() != SourcePhase::Asking {
            return;
        }
        let word = match event {
            SourceEvent::ConnectFailed(text) => Word::NoLink(text.clone()),
            SourceEvent::Received(ToSource::Unknown(unknown)) => match unknown.known {
                Known::MayHaveRun => Word::MayHaveRun,
                Known::NoTrace => Word::NoTrace,
                Known::Lives => Word::Lives,
            },
            SourceEvent::LinkLost(fault) => {
                Word::NoLink(ferry_protocol::Cause::from(fault.clone()).to_string())
            }
            _ => return,
        };
        self.observer.word(&word);
    }
}
