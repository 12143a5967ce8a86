//! Links between processes: two ways, each in order, with delay and bandwidth, until it ends.
//!
//! A way is what a TCP connection is to its two kernels: what was sent before a close still arrives;
//! a link that breaks loses what is under way; a link may break for one end only, which the other
//! finds out by waiting; and between two hosts everything may be held, and released later.

use std::collections::VecDeque;

use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{InstanceId, LinkFault, LinkId, Time};
use ferry_state::Section;

/// What travels to a target.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    /// The link stands.
    Opened,
    Message(ToTarget),
    /// A page of a round; none for one that is zero.
    Page {
        round: u32,
        page: u64,
        data: Option<Vec<u8>>,
    },
    Section(Section),
    /// Nothing follows.
    Lost(LinkFault),
}

/// What travels to a source.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Message(ToSource),
    Lost(LinkFault),
}

/// What may be the last of a way.
pub(crate) trait Ends {
    fn end(fault: LinkFault) -> Self;
    fn is_end(&self) -> bool;
    /// The message's name, if it is one.
    fn name(&self) -> Option<&'static str>;
}

impl Ends for Down {
    fn end(fault: LinkFault) -> Self {
        Self::Lost(fault)
    }

    fn is_end(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Message(message) => Some(message.name()),
            _ => None,
        }
    }
}

impl Ends for Up {
    fn end(fault: LinkFault) -> Self {
        Self::Lost(fault)
    }

    fn is_end(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Message(message) => Some(message.name()),
            Self::Lost(_) => None,
        }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Way<T> {
    /// With the times at which they arrive.
    queue: VecDeque<(Time, T)>,
    /// When the sender's next byte can leave.
    free_at: Time,
    /// The receiver still listens.
    open: bool,
    /// The sender sends no more.
    ended: bool,
}

impl<T: Ends> Way<T> {
    fn new() -> Self {
        Self { queue: VecDeque::new(), free_at: Time::ZERO, open: true, ended: false }
    }

    /// Sends: it leaves after what was sent before, takes `busy` to leave and `delay` to arrive.
    /// The time at which it arrives; none if nobody gets it.
    pub(crate) fn send(&mut self, now: Time, item: T, busy: u64, delay: u64) -> Option<Time> {
        if !self.open || self.ended {
            return None;
        }
        self.free_at = Time(self.free_at.max(now).0 + busy);
        let last = self.queue.back().map_or(Time::ZERO, |&(at, _)| at);
        let at = last.max(Time(self.free_at.0 + delay));
        self.ended = item.is_end();
        self.queue.push_back((at, item));
        Some(at)
    }

    /// The receiver closes: nothing arrives any more.
    pub(crate) fn shut(&mut self) {
        self.open = false;
        self.queue.clear();
    }

    /// The way breaks: of what is under way only the first `keep` items arrive, and nothing that is
    /// sent later. The names of the messages that are lost.
    pub(crate) fn cut(&mut self, keep: usize) -> Vec<&'static str> {
        let lost = self.queue.drain(keep.min(self.queue.len())..).filter_map(|(_, item)| item.name());
        let lost = lost.collect();
        self.ended = true;
        lost
    }

    /// What is under way arrives, and cannot be read.
    pub(crate) fn garble(&mut self, now: Time) -> Option<Time> {
        if !self.open || self.queue.is_empty() {
            return None;
        }
        self.queue.clear();
        self.ended = true;
        self.queue.push_back((now, T::end(LinkFault::Garbled("it cannot be read".into()))));
        Some(now)
    }

    /// The receiver's kernel finds out that the link is gone.
    pub(crate) fn tell(&mut self, now: Time, fault: LinkFault) -> Option<Time> {
        if !self.open || self.queue.back().is_some_and(|(_, item)| item.is_end()) {
            return None;
        }
        let at = self.queue.back().map_or(now, |&(at, _)| at.max(now));
        self.queue.push_back((at, T::end(fault)));
        self.ended = true;
        Some(at)
    }

    /// The next item, if it has arrived.
    pub(crate) fn arrived(&self, now: Time) -> Option<&T> {
        self.queue.front().filter(|&&(at, _)| at <= now).map(|(_, item)| item)
    }

    /// Takes the next item, if it has arrived.
    pub(crate) fn take(&mut self, now: Time) -> Option<T> {
        self.arrived(now)?;
        let (_, item) = self.queue.pop_front()?;
        if item.is_end() {
            self.shut();
        }
        Some(item)
    }

    /// How long what is sent now must wait before it leaves, in microseconds.
    pub(crate) fn backlog(&self, now: Time) -> u64 {
        self.free_at.0.saturating_sub(now.0)
    }

    /// How many items are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.queue.len()
    }
}

/// Who made a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// A process's source.
    Source(usize),
    /// A stranger with a guest of its own.
    Stranger,
    /// A stranger who heard of the guest: uses its name, or repeats what it heard.
    Listener,
}

/// What was sent to a target, and after how many of its messages: a stranger who listened can send it
/// again.
pub(crate) type Record = Vec<(usize, Down)>;

/// A link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) maker: Maker,
    /// The host on which it was made, and the process to which it leads.
    pub(crate) from_host: usize,
    pub(crate) target: usize,
    pub(crate) down: Way<Down>,
    pub(crate) up: Way<Up>,
    /// About which process a question on it was asked.
    pub(crate) asked: Option<InstanceId>,
    /// Messages that came up.
    pub(crate) answers: usize,
    pub(crate) record: Record,
    /// What a stranger will still send, in order.
    pub(crate) replay: VecDeque<(usize, Down)>,
}

impl Link {
    pub(crate) fn new(number: usize, maker: Maker, from_host: usize, target: usize) -> Self {
        Self {
            id: LinkId(number as u64),
            maker,
            from_host,
            target,
            down: Way::new(),
            up: Way::new(),
            asked: None,
            answers: 0,
            record: Vec::new(),
            replay: VecDeque::new(),
        }
    }
}

/// What holds for all links between the two hosts.
#[derive(Debug)]
pub(crate) struct Network {
    /// Microseconds from one host to the other.
    pub(crate) delay: u64,
    /// Microseconds in which one page leaves.
    pub(crate) page: u64,
    /// By how much everything is slower, until when.
    pub(crate) slower: (u64, Time),
    /// Until when nothing that a host sends arrives.
    pub(crate) held: [Time; 2],
}

impl Network {
    /// Whether what a host sends is held now.
    pub(crate) fn holds(&self, from_host: usize, now: Time) -> bool {
        now < self.held[from_host]
    }

    pub(crate) fn factor(&self, now: Time) -> u64 {
        if now < self.slower.1 { self.slower.0.max(1) } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word() -> Down {
        Down::Opened
    }

    #[test]
    fn what_was_sent_before_a_close_arrives_and_nothing_after_it() {
        let mut way = Way::new();
        assert_eq!(way.send(Time(10), word(), 5, 100), Some(Time(115)));
        assert_eq!(way.send(Time(10), Down::Lost(LinkFault::Closed), 0, 100), Some(Time(115)));
        assert_eq!(way.send(Time(11), word(), 0, 0), None);
        assert!(way.take(Time(114)).is_none());
        assert!(matches!(way.take(Time(115)), Some(Down::Opened)));
        assert!(matches!(way.take(Time(115)), Some(Down::Lost(LinkFault::Closed))));
        assert!(way.take(Time(999)).is_none());
    }

    #[test]
    fn a_cut_loses_what_is_under_way() {
        let mut way = Way::new();
        for _ in 0..3 {
            way.send(Time(0), word(), 0, 50);
        }
        way.cut(1);
        assert_eq!(way.send(Time(1), word(), 0, 0), None);
        assert!(way.take(Time(50)).is_some());
        assert!(way.take(Time(50)).is_none(), "silence: nobody told the receiver");
        assert_eq!(way.tell(Time(60), LinkFault::Closed), Some(Time(60)));
        assert!(way.take(Time(60)).is_some_and(|item| item.is_end()));
    }

    #[test]
    fn a_slow_way_keeps_the_order() {
        let mut way = Way::new();
        assert_eq!(way.send(Time(0), word(), 10, 500), Some(Time(510)));
        assert_eq!(way.send(Time(0), word(), 10, 5), Some(Time(510)));
        assert_eq!(way.backlog(Time(0)), 20);
    }
}
