//! A device's turn: what its backend may do with the queues, and say to the driver.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::chain::{Chain, Malformed};
use super::device::Front;
use super::memory::DeviceMemory;
use super::registers::{INTERRUPT_CONFIG, INTERRUPT_RING};
use super::ring::Ring;

/// What a turn uses of the device.
pub(super) struct Shared<'a> {
    pub(super) memory: &'a DeviceMemory,
    pub(super) front: &'a Mutex<Front>,
    pub(super) waiting: &'a AtomicUsize,
    pub(super) is_leaving: &'a AtomicBool,
    pub(super) is_announced: &'a AtomicBool,
}

impl Shared<'_> {
    /// Whether the turn is to end, a long request in its middle; there will be another one.
    pub(super) fn must_end(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
            || self.is_leaving.load(Ordering::Acquire)
            || self.is_announced.load(Ordering::Acquire)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is answered; so many bytes were written into it.
    Done(u32),
    /// It is to be asked again, from its beginning; the turn ends. The driver does not notice.
    Later,
}

/// A backend's turn: its queues, and what it may say to the driver.
pub(super) struct Turn<'a> {
    pub(super) device: Shared<'a>,
    pub(super) rings: &'a mut [Option<Ring>],
}

impl<'a> Turn<'a> {
    /// Guest memory.
    pub(super) fn memory(&self) -> &'a DeviceMemory {
        self.device.memory
    }

    /// Whether the driver has accepted this feature.
    pub(super) fn has(&self, feature: u32) -> bool {
        self.front().registers.has(feature)
    }

    /// Whether the turn is to end after the request at hand; there will be another one.
    pub(super) fn must_end(&self) -> bool {
        self.device.must_end()
    }

    /// Answers requests of a queue, one after the other, until none waits or the turn must end; so many at
    /// most. True if more may wait.
    pub(super) fn answer(
        &mut self,
        queue: usize,
        budget: usize,
        mut answer: impl FnMut(&Shared<'_>, &Chain) -> Result<Answer, Malformed>,
    ) -> Result<bool, Malformed> {
        for _ in 0..budget {
            if self.must_end() {
                return Ok(false);
            }
            if let Some(chain) = self.next(queue)? {
                match answer(&self.device, &chain)? {
                    Answer::Done(written) => self.complete(queue, &chain, written)?,
                    Answer::Later => {
                        self.put_back(queue);
                        return Ok(false);
                    }
                }
            } else if !self.wait_for_more(queue)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next request of a queue; none, too, if the queue is not in use.
    pub(super) fn next(&mut self, queue: usize) -> Result<Option<Chain>, Malformed> {
        let memory = self.device.memory;
        self.ring(queue).map_or(Ok(None), |ring| ring.pop(memory))
    }

    /// Gives the request back that was taken last.
    pub(super) fn put_back(&mut self, queue: usize) {
        if let Some(ring) = self.ring(queue) {
            ring.put_back();
        }
    }

    /// Gives an answered request to the driver.
    pub(super) fn complete(&mut self, queue: usize, chain: &Chain, written: u32) -> Result<(), Malformed> {
        let memory = self.device.memory;
        let ring = self.ring(queue);
        if ring.map_or(Ok(false), |ring| ring.complete(memory, chain.head(), written))? {
            self.interrupt(INTERRUPT_RING);
        }
        Ok(())
    }

    /// Asks for a notification of the next request. True if there is one already.
    pub(super) fn wait_for_more(&mut self, queue: usize) -> Result<bool, Malformed> {
        let memory = self.device.memory;
        self.ring(queue).map_or(Ok(false), |ring| ring.wait_for_more(memory))
    }

    /// Gives the driver another configuration, and tells it.
    pub(super) fn configure(&mut self, config: Vec<u8>) {
        self.note_config(config);
        self.interrupt(INTERRUPT_CONFIG);
    }

    /// The driver has changed the configuration by an order.
    pub(super) fn note_config(&mut self, config: Vec<u8>) {
        self.front().registers.configure(config);
    }

    fn interrupt(&self, reason: u8) {
        let mut front = self.front();
        if front.registers.is_running() {
            front.registers.interrupt(reason);
            front.set_line();
        }
    }

    fn front(&self) -> MutexGuard<'a, Front> {
        self.device.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&mut self, queue: usize) -> Option<&mut Ring> {
        self.rings.get_mut(queue).and_then(Option::as_mut)
    }
}
