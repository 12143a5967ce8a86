//! The debug port: the device behind [`ports`], through which a payload waits, reports
//! and is asked.
//!
//! The vCPU's thread calls [`DebugPort::write`] and [`DebugPort::read`] on exits; other threads ask
//! ([`DebugPort::verify`]) and look ([`DebugPort::report`]). A wait blocks the vCPU's thread here,
//! in user space, until its time, a question or [`DebugPort::interrupt`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_state::{Fields, MachineState, Part, Section, StateError};
use minicbor::{Decode, Encode};

use crate::guest::{CheckReport, GuestReport};
use crate::{VmmError, ports};

/// How far behind its own rate a payload may fall before the rest is forgiven.
const LAG_MAX: Duration = Duration::from_millis(20);

/// The device. Its payload's name is part of every report.
#[derive(Debug)]
pub struct DebugPort {
    payload: &'static str,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    state: PortState,
    /// Whether waits end at once, because the vCPU is wanted elsewhere.
    interrupted: bool,
    /// When the last wait was due; not part of the state, for it is the host's time.
    due: Option<Instant>,
    /// Why the guest ended.
    ended: Option<String>,
}

/// What the device holds of the guest: this crosses with it, as section `device/debug-port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct PortState {
    #[n(0)]
    progress: u64,
    #[n(1)]
    pages_checked: u64,
    #[n(2)]
    faults: u64,
    /// The first fault ever.
    #[n(3)]
    first_fault: Option<Fault>,
    /// The fault that is being written, not counted yet.
    #[n(4)]
    fault: Fault,
    /// The last ticket given out, and the last one answered.
    #[n(5)]
    asked: u32,
    #[n(6)]
    answered: u32,
    /// The answer that is being written or was written last.
    #[n(7)]
    check_pages: u32,
    #[n(8)]
    check_faults: u32,
}

/// A word of a page that holds what it should not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Fault {
    #[n(0)]
    page: u32,
    #[n(1)]
    word: u32,
    #[n(2)]
    expected: u64,
    #[n(3)]
    found: u64,
}

impl Part for PortState {
    const NAME: &'static str = "device/debug-port";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

impl DebugPort {
    /// The device as it is at birth, for a payload of this name.
    pub(crate) fn new(payload: &'static str) -> Self {
        Self { payload, inner: Mutex::new(Inner::default()), changed: Condvar::new() }
    }

    /// A 32-bit write by the guest; blocks for [`ports::WAIT`].
    pub(crate) fn write(&self, port: u16, value: u32) {
        if port == ports::WAIT {
            self.wait(value);
            return;
        }
        let mut inner = self.lock();
        inner.state.write(port, value);
        if port == ports::CHECK_DONE {
            self.changed.notify_all();
        }
    }

    /// A 32-bit read by the guest. Ports that mean nothing read as all ones, as on a PC.
    pub(crate) fn read(&self, port: u16) -> u32 {
        match port {
            ports::COMMAND => self.lock().state.pending().unwrap_or(0),
            _ => u32::MAX,
        }
    }

    /// Ends the wait under way and every later one at once, until [`allow`](Self::allow).
    pub(crate) fn interrupt(&self) {
        self.lock().interrupted = true;
        self.changed.notify_all();
    }

    /// Lets waits wait again.
    pub(crate) fn allow(&self) {
        self.lock().interrupted = false;
    }

    /// Says that the guest ended by itself, and why.
    pub(crate) fn guest_ended(&self, reason: &str) {
        self.lock().ended.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }

    /// The state that crosses with the guest. Needed is what differs from a device at birth.
    pub(crate) fn capture(&self) -> Result<MachineState, StateError> {
        let section = Section::of(&self.lock().state, 0, Some(&PortState::default()))?;
        Ok(MachineState { sections: vec![section] })
    }

    /// Takes a state that crossed.
    pub(crate) fn restore(&self, state: &MachineState) -> Result<(), StateError> {
        state.refuse_unknown(&[PortState::NAME])?;
        self.lock().state = state.require(0)?;
        Ok(())
    }

    /// How the guest is doing, as far as it told.
    pub fn report(&self) -> GuestReport {
        let inner = self.lock();
        GuestReport {
            payload: self.payload.to_owned(),
            progress: inner.state.progress,
            pages_checked: inner.state.pages_checked,
            faults: inner.state.faults,
            first_fault: inner.state.first_fault.map(Fault::sentence),
            stopped: inner.ended.clone(),
        }
    }

    /// Asks the running guest to verify all its pages, and waits for its answer.
    pub fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError> {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        let ticket = inner.state.ask();
        self.changed.notify_all();
        loop {
            if inner.state.answered >= ticket {
                return Ok(inner.state.answer());
            }
            if let Some(reason) = inner.ended.clone() {
                return Err(VmmError::Ended { reason });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                inner.state.withdraw(ticket);
                return Err(VmmError::NoAnswer { timeout });
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Blocks the vCPU's thread.
    fn wait(&self, micros: u32) {
        let mut inner = self.lock();
        let due = inner.next_due(Instant::now(), micros);
        while !inner.interrupted && inner.state.pending().is_none() {
            inner = match due {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete in itself, so a panic elsewhere left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// When a wait of `micros` that begins now is due; none for a wait without a time.
    fn next_due(&mut self, now: Instant, micros: u32) -> Option<Instant> {
        if micros == 0 {
            return None;
        }
        let due = self.due.unwrap_or(now) + Duration::from_micros(u64::from(micros));
        let earliest = now.checked_sub(LAG_MAX).unwrap_or(now);
        self.due = Some(due.max(earliest));
        self.due
    }
}

impl PortState {
    /// Takes a write to a port that does not wait.
    fn write(&mut self, port: u16, value: u32) {
        let fault = &mut self.fault;
        match port {
            ports::PROGRESS => self.progress = self.progress.wrapping_add(value.into()),
            ports::PAGES_CHECKED => self.pages_checked = self.pages_checked.wrapping_add(value.into()),
            ports::FAULT_PAGE => fault.page = value,
            ports::FAULT_WORD => fault.word = value,
            ports::FAULT_EXPECTED_LOW => set_low(&mut fault.expected, value),
            ports::FAULT_EXPECTED_HIGH => set_high(&mut fault.expected, value),
            ports::FAULT_FOUND_LOW => set_low(&mut fault.found, value),
            ports::FAULT_FOUND_HIGH => {
                set_high(&mut fault.found, value);
                self.faults = self.faults.wrapping_add(1);
                self.first_fault.get_or_insert(*fault);
            }
            ports::CHECK_PAGES => self.check_pages = value,
            ports::CHECK_FAULTS => self.check_faults = value,
            ports::CHECK_DONE => self.answered = value,
            _ => {}
        }
    }

    /// The ticket that waits for its answer.
    fn pending(&self) -> Option<u32> {
        (self.asked > self.answered).then_some(self.asked)
    }

    /// Gives out a new ticket.
    fn ask(&mut self) -> u32 {
        self.asked = self.asked.max(self.answered).saturating_add(1);
        self.asked
    }

    /// Takes a ticket back, unless a later one waits.
    fn withdraw(&mut self, ticket: u32) {
        if self.asked == ticket {
            self.asked = self.answered;
        }
    }

    fn answer(&self) -> CheckReport {
        CheckReport { pages: self.check_pages.into(), faults: self.check_faults.into() }
    }
}

impl Fault {
    fn sentence(self) -> String {
        let Self { page, word, expected, found } = self;
        format!("page {page} of the working set, word {word}: expected {expected:#018x}, found {found:#018x}")
    }
}

fn set_low(word: &mut u64, half: u32) {
    *word = *word & !u64::from(u32::MAX) | u64::from(half);
}

fn set_high(word: &mut u64, half: u32) {
    *word = *word & u64::from(u32::MAX) | u64::from(half) << 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn report_fault(port: &DebugPort, page: u32) {
        port.write(ports::FAULT_PAGE, page);
        port.write(ports::FAULT_WORD, 5);
        port.write(ports::FAULT_EXPECTED_LOW, 1);
        port.write(ports::FAULT_EXPECTED_HIGH, 2);
        port.write(ports::FAULT_FOUND_LOW, 3);
        port.write(ports::FAULT_FOUND_HIGH, 4);
    }

    #[test]
    fn the_first_fault_is_kept_and_all_are_counted() {
        let port = DebugPort::new("churn");
        report_fault(&port, 7);
        report_fault(&port, 8);
        let report = port.report();
        assert_eq!(report.faults, 2);
        assert_eq!(
            report.first_fault.as_deref(),
            Some("page 7 of the working set, word 5: expected 0x0000000200000001, found 0x0000000400000003")
        );
    }

    #[test]
    fn a_guest_moved_in_the_middle_of_a_report_loses_nothing() {
        let port = DebugPort::new("churn");
        port.write(ports::PROGRESS, 9);
        port.write(ports::FAULT_PAGE, 7);
        port.write(ports::FAULT_EXPECTED_LOW, 1);
        let crossed = port.capture().unwrap();
        assert_eq!(crossed.sections[0].needed, [0, 4], "only what differs from birth is needed");
        let target = DebugPort::new("churn");
        target.restore(&crossed).unwrap();
        target.write(ports::FAULT_FOUND_HIGH, 4);
        assert_eq!(target.report().progress, 9);
        assert!(target.report().first_fault.unwrap().starts_with("page 7 "));
    }

    #[test]
    fn a_wait_ends_for_a_pause_a_question_and_its_time() {
        let port = Arc::new(DebugPort::new("idle"));
        port.interrupt();
        port.write(ports::WAIT, 0);
        port.allow();
        port.write(ports::WAIT, 1);
        let asker = Arc::clone(&port);
        let answer = std::thread::spawn(move || asker.verify(Duration::from_secs(10)));
        port.write(ports::WAIT, 0);
        let ticket = port.read(ports::COMMAND);
        assert_ne!(ticket, 0);
        port.write(ports::CHECK_PAGES, 12);
        port.write(ports::CHECK_FAULTS, 1);
        port.write(ports::CHECK_DONE, ticket);
        assert_eq!(answer.join().unwrap().unwrap(), CheckReport { pages: 12, faults: 1 });
        assert_eq!(port.read(ports::COMMAND), 0);
    }

    #[test]
    fn a_question_without_an_answer_is_taken_back() {
        let port = DebugPort::new("idle");
        let error = port.verify(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, VmmError::NoAnswer { .. }));
        assert_eq!(port.read(ports::COMMAND), 0);
        port.guest_ended("it crashed");
        let error = port.verify(Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "the guest has ended: it crashed");
    }

    #[test]
    fn a_late_payload_catches_up_only_a_little() {
        let mut inner = Inner::default();
        let start = Instant::now();
        assert_eq!(inner.next_due(start, 0), None);
        assert_eq!(inner.next_due(start, 5000), Some(start + Duration::from_millis(5)));
        let late = start + Duration::from_secs(1);
        let forgiven = start + Duration::from_millis(980);
        assert_eq!(inner.next_due(late, 5000), Some(forgiven));
        assert_eq!(inner.next_due(late, 5000), Some(forgiven + Duration::from_millis(5)));
    }

    #[test]
    fn a_state_of_another_device_is_refused() {
        let port = DebugPort::new("idle");
        let mut state = port.capture().unwrap();
        state.sections[0].name = "device/other".to_owned();
        state.sections[0].needed = vec![0];
        assert!(port.restore(&state).is_err());
        assert!(port.restore(&MachineState::default()).is_err());
    }
}
