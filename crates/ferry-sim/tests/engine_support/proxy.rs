//! A proxy between source and target that passes frames on, and fails where it is told to.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ferry_migrate::Address;

use super::raw::{Frame, Raw, RawListener};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    ToTarget,
    ToSource,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    /// It vanishes; the link stands.
    Drop,
    /// The link is cut before it arrives.
    CutBefore,
    /// The link is cut once it has arrived.
    CutAfter,
}

/// A frame on its way.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// The link, from 0.
    pub(crate) link: u64,
    pub(crate) direction: Direction,
    pub(crate) frame: &'a Frame,
}

type Rule = Box<dyn Fn(&Pass<'_>) -> Fate + Send + Sync>;

struct Shared {
    rule: Rule,
    to: Arc<Mutex<Address>>,
    /// New links are closed at once.
    dead: Arc<AtomicBool>,
    accepted: AtomicU64,
}

/// A proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: Address,
    shared: Arc<Shared>,
    listener: Arc<RawListener>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn new(
        at: &Address,
        to: &Address,
        rule: impl Fn(&Pass<'_>) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let (listener, address) = RawListener::bind(at);
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            rule: Box::new(rule),
            to: Arc::new(Mutex::new(to.clone())),
            dead: Arc::default(),
            accepted: AtomicU64::new(0),
        });
        let (accepting, common) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread = Some(std::thread::spawn(move || serve(&accepting, &common)));
        Self { address, shared, listener, thread }
    }

    /// From now on new links are closed at once, or no longer.
    pub(crate) fn set_dead(&self, dead: bool) {
        self.shared.dead.store(dead, Ordering::SeqCst);
    }

    /// What [`set_dead`](Self::set_dead) sets.
    pub(crate) fn switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared.dead)
    }

    /// What [`lead_to`](Self::lead_to) sets.
    pub(crate) fn way(&self) -> Arc<Mutex<Address>> {
        Arc::clone(&self.shared.to)
    }

    /// Where new links lead.
    pub(crate) fn lead_to(&self, to: &Address) {
        *self.shared.to.lock().unwrap_or_else(PoisonError::into_inner) = to.clone();
    }

    /// Links that were made so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(listener: &RawListener, shared: &Arc<Shared>) {
    let mut pipes = Vec::new();
    while let Ok(source) = listener.accept() {
        let link = shared.accepted.fetch_add(1, Ordering::SeqCst);
        if shared.dead.load(Ordering::SeqCst) {
            continue;
        }
        let to = shared.to.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let target = Raw::connect(&to);
        for (direction, from, into) in [
            (Direction::ToTarget, source.twin(), target.twin()),
            (Direction::ToSource, target.twin(), source.twin()),
        ] {
            let shared = Arc::clone(shared);
            pipes.push(std::thread::spawn(move || pass_all(link, direction, from, into, &shared)));
        }
    }
    for pipe in pipes {
        drop(pipe.join());
    }
}

fn pass_all(link: u64, direction: Direction, mut from: Raw, mut into: Raw, shared: &Shared) {
    while let Some(frame) = from.next() {
        let fate = (shared.rule)(&Pass { link, direction, frame: &frame });
        match fate {
            Fate::Drop => continue,
            Fate::CutBefore => {
                from.close(Shutdown::Both);
                into.close(Shutdown::Both);
                return;
            }
            Fate::Pass | Fate::CutAfter => {}
        }
        // To one who closed it is lost, and the sender learns it from the end of the other direction.
        into.throw(&frame.bytes());
        if fate == Fate::CutAfter {
            // What was sent is to arrive: the end of the stream follows it.
            into.close(Shutdown::Write);
            from.close(Shutdown::Both);
            return;
        }
    }
    // The other direction ends by itself.
    into.close(Shutdown::Write);
}
