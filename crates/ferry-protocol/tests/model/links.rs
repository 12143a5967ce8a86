//! The network: links with two ways. What is under way on a link can be late for ever, and with a
//! fault be lost, doubled, overtaken or cut off.

use ferry_protocol::message::{Reason, ReasonKind, Refused, ToSource, ToTarget};

/// What is under way to one side, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Way<M> {
    pub(crate) queue: Vec<Item<M>>,
    /// The receiver still listens.
    open: bool,
    /// Nothing can be sent any more.
    ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Item<M> {
    Message(M),
    /// Nothing follows.
    Lost,
}

impl<M> Way<M> {
    fn new() -> Self {
        Self { queue: Vec::new(), open: true, ended: false }
    }

    pub(crate) fn send(&mut self, message: M) {
        if self.open && !self.ended {
            self.queue.push(Item::Message(message));
        }
    }

    /// The sender closes: what it sent before still arrives.
    pub(crate) fn end(&mut self) {
        if self.open && !self.ended {
            self.queue.push(Item::Lost);
        }
        self.ended = true;
    }

    /// The receiver closes: nothing arrives any more.
    pub(crate) fn shut(&mut self) {
        self.open = false;
        self.ended = true;
        self.queue.clear();
    }

    /// The way breaks; what is under way still arrives, or not.
    pub(crate) fn cut(&mut self, keep: bool) {
        if !keep && self.open {
            self.queue.clear();
            self.ended = false;
        }
        self.end();
    }

    /// Takes the item at that place; nothing arrives after a loss.
    pub(crate) fn take(&mut self, place: usize) -> Option<Item<M>> {
        let item = (place < self.queue.len()).then(|| self.queue.remove(place))?;
        if item_is_lost(&item) {
            self.shut();
        }
        Some(item)
    }

    /// The oldest message will come a second time, after what is under way now.
    pub(crate) fn double(&mut self)
    where
        M: Clone,
    {
        if let Some(Item::Message(message)) = self.queue.first() {
            let copy = Item::Message(message.clone());
            let end = self.queue.iter().position(item_is_lost).unwrap_or(self.queue.len());
            self.queue.insert(end, copy);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }
}

fn item_is_lost<M>(item: &Item<M>) -> bool {
    matches!(item, Item::Lost)
}

/// A link between the source's process, or somebody who repeats what it once said, and one life of
/// the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    /// Which life of the target it leads to.
    pub(crate) life: usize,
    pub(crate) to_target: Way<ToTarget>,
    pub(crate) to_source: Way<ToSource>,
}

impl Link {
    pub(crate) fn new(life: usize) -> Self {
        Self { life, to_target: Way::new(), to_source: Way::new() }
    }

    /// A link on which all this comes once more; its answers go nowhere.
    pub(crate) fn replay(life: usize, said: Vec<ToTarget>) -> Self {
        let mut link = Self::new(life);
        link.to_target.queue.extend(said.into_iter().map(Item::Message));
        link.to_target.end();
        link.to_source.shut();
        link
    }

    /// Neither side hears of it any more.
    pub(crate) fn is_over(&self) -> bool {
        !self.to_target.is_open() && !self.to_source.is_open()
    }
}

fn no_reason() -> Reason {
    Reason::new(ReasonKind::Asked, "")
}

/// Without the words that only people read: they would tell states apart that act alike.
pub(crate) fn plain_to_source(message: ToSource) -> ToSource {
    match message {
        ToSource::Refused(refused) => ToSource::Refused(Refused { of: refused.of, reason: no_reason() }),
        ToSource::Abort(_) => ToSource::Abort(no_reason()),
        other => other,
    }
}

pub(crate) fn plain_to_target(message: ToTarget) -> ToTarget {
    match message {
        ToTarget::Abort(_) => ToTarget::Abort(no_reason()),
        other => other,
    }
}
