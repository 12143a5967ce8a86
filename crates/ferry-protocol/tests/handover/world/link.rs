//! Links of the world: two ways, each in order and without loss until it ends.

use std::collections::VecDeque;

use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{LinkFault, LinkId};

/// What travels one way.
pub(crate) enum Item<M> {
    /// The link stands (to the target only).
    Opened,
    Message(M),
    /// Nothing follows.
    Lost(LinkFault),
}

/// One direction of a link.
pub(crate) struct Way<M> {
    queue: VecDeque<Item<M>>,
    /// The receiver still listens.
    open: bool,
    /// The sender sends no more.
    ended: bool,
}

impl<M> Way<M> {
    fn new() -> Self {
        Self { queue: VecDeque::new(), open: true, ended: false }
    }

    pub(crate) fn send(&mut self, message: M) {
        if self.open && !self.ended {
            self.queue.push_back(Item::Message(message));
        }
    }

    /// The sender closes: what it sent before still arrives.
    pub(crate) fn end(&mut self, fault: LinkFault) {
        if self.open && !self.ended {
            self.queue.push_back(Item::Lost(fault));
        }
        self.ended = true;
    }

    /// The receiver closes: nothing arrives any more.
    pub(crate) fn shut(&mut self) {
        self.open = false;
        self.queue.clear();
    }

    /// The way breaks: of what is under way only the first `keep` items arrive.
    fn cut(&mut self, keep: usize) {
        if self.ended && self.queue.is_empty() {
            return;
        }
        self.queue.truncate(keep);
        self.ended = false;
        self.end(LinkFault::Failed("the link broke".into()));
    }

    pub(crate) fn take(&mut self) -> Option<Item<M>> {
        let item = self.queue.pop_front()?;
        if matches!(item, Item::Lost(_)) {
            self.shut();
        }
        Some(item)
    }

    pub(crate) fn has_items(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// A link between the source's host and one life of the target.
pub(crate) struct Link {
    pub(crate) life: usize,
    pub(crate) id: LinkId,
    pub(crate) to_target: Way<ToTarget>,
    pub(crate) to_source: Way<ToSource>,
}

impl Link {
    pub(crate) fn new(life: usize, number: usize) -> Self {
        let mut to_target = Way::new();
        to_target.queue.push_back(Item::Opened);
        let id = LinkId(number as u64);
        Self { life, id, to_target, to_source: Way::new() }
    }

    /// Both ways break; of what is under way the first items still arrive.
    pub(crate) fn cut(&mut self, keep_to_target: usize, keep_to_source: usize) {
        self.to_target.cut(keep_to_target);
        self.to_source.cut(keep_to_source);
    }
}
