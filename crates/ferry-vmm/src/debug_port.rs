//! The debug port: the device behind [`ports`], through which a payload waits, reports
//! and is asked.
//!
//! Each vCPU has its own: its turns, its faults, its answers. Its thread calls [`DebugPort::write`] and
//! [`DebugPort::read`] on exits; other threads ask
//! ([`DebugPort::verify`]) and look ([`DebugPort::report`]). A wait blocks the vCPU's thread here,
//! in user space, until its time, a question or [`DebugPort::interrupt`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_migrate::{MachineError, Saved};
use ferry_state::{Fields, Part, Section, StateError};
use minicbor::{Decode, Encode};

use crate::guest::{CheckReport, GuestReport};
use crate::{GuestConfig, Payload, VmmError, payload, ports};

/// How far behind its own rate a payload may fall before the rest is forgiven.
const LAG_MAX: Duration = Duration::from_millis(20);

/// The device of a guest. What a fault says depends on its payload.
#[derive(Debug)]
pub struct DebugPort {
    payload: Payload,
    /// The first page of each vCPU's share of the working set.
    shares: Vec<u64>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    cpus: Vec<Cpu>,
    /// Whether waits end at once, because the vCPU is wanted elsewhere.
    interrupted: bool,
    /// Why the guest ended.
    ended: Option<String>,
}

/// The device as one vCPU sees it.
#[derive(Debug, Default)]
struct Cpu {
    state: PortState,
    /// When the last wait was due; not part of the state, for it is the host's time.
    due: Option<Instant>,
}

/// How long the answer of a program is waited for that never used these ports.
const MUTE: Duration = Duration::from_secs(1);

/// What the device holds of one vCPU: this crosses with it, as section `device/debug-port` with the
/// vCPU's index.
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
    /// The largest step of time that `clock` saw, in ticks of the counter.
    #[n(9)]
    largest_jump: u64,
    /// The frequency of the counter (on x86-64 the TSC) at birth.
    #[n(10)]
    counter_khz: u32,
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
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
}

impl DebugPort {
    /// The device as it is at birth.
    pub(crate) fn new(config: &GuestConfig) -> Self {
        let shares: Vec<u64> = (0..config.cpus).map(|cpu| config.share(cpu).start).collect();
        let cpus = shares.iter().map(|_| Cpu::default()).collect();
        let inner = Inner { cpus, interrupted: false, ended: None };
        Self { payload: config.payload, shares, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Notes how fast the vCPUs' counters (on x86-64 the TSCs) count at birth.
    pub(crate) fn born_with(&self, counter_khz: u32) {
        self.lock().cpus.iter_mut().for_each(|cpu| cpu.state.counter_khz = counter_khz);
    }

    /// A 32-bit write by a vCPU; blocks for [`ports::WAIT`].
    pub(crate) fn write(&self, cpu: usize, port: u16, value: u32) {
        if port == ports::WAIT {
            self.wait(cpu, value);
            return;
        }
        let mut inner = self.lock();
        if let Some(cpu) = inner.cpus.get_mut(cpu) {
            cpu.state.write(port, value);
        }
        if port == ports::CHECK_DONE {
            self.changed.notify_all();
        }
    }

    /// A 32-bit read by a vCPU. Ports that mean nothing read as all ones, as on a PC.
    pub(crate) fn read(&self, cpu: usize, port: u16) -> u32 {
        match port {
            ports::COMMAND => self.lock().pending(cpu).unwrap_or(0),
            _ => u32::MAX,
        }
    }

    /// Ends every wait under way and every later one at once, until [`allow`](Self::allow).
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

    /// What vCPU `cpu` holds: this crosses with it. Needed is what differs from a device at birth.
    pub(crate) fn save(&self, cpu: usize) -> Result<Saved, MachineError> {
        let inner = self.lock();
        let cpu = inner.cpus.get(cpu).ok_or_else(|| MachineError::new(format!("there is no vCPU {cpu}")))?;
        Saved::part(&cpu.state, Some(&PortState::default()))
    }

    /// Takes what crossed of vCPU `cpu`.
    pub(crate) fn restore(&self, cpu: usize, section: &Section) -> Result<(), StateError> {
        let state = section.read()?;
        if let Some(cpu) = self.lock().cpus.get_mut(cpu) {
            cpu.state = state;
        }
        Ok(())
    }

    /// How the guest is doing, as far as it told.
    pub fn report(&self) -> GuestReport {
        let inner = self.lock();
        let sum = |of: fn(&PortState) -> u64| {
            inner.cpus.iter().fold(0_u64, |sum, cpu| sum.wrapping_add(of(&cpu.state)))
        };
        GuestReport {
            payload: self.payload.name().to_owned(),
            progress: sum(|state| state.progress),
            pages_checked: sum(|state| state.pages_checked),
            faults: sum(|state| state.faults),
            first_fault: self.first_fault(&inner),
            largest_jump_us: inner.cpus.iter().filter_map(|cpu| cpu.state.largest_jump_us()).max(),
            stopped: inner.ended.clone(),
            ..GuestReport::default()
        }
    }

    /// The turns of each vCPU's main loop.
    pub fn progress_of_each(&self) -> Vec<u64> {
        self.lock().cpus.iter().map(|cpu| cpu.state.progress).collect()
    }

    /// The first fault of the first vCPU that has one.
    fn first_fault(&self, inner: &Inner) -> Option<String> {
        let mut cpus = inner.cpus.iter().zip(&self.shares).enumerate();
        cpus.find_map(|(index, (cpu, share))| {
            let Fault { page, word, expected, found } = cpu.state.first_fault?;
            let sentence = payload::fault(&self.payload, *share, page, word, expected, found);
            let alone = inner.cpus.len() == 1;
            Some(if alone { sentence } else { format!("vCPU {index}: {sentence}") })
        })
    }

    /// Asks every vCPU of the running guest for its check, and waits for all answers.
    pub fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError> {
        let mut inner = self.lock();
        // A program from a file that never used these ports will not begin to because it is asked, and a kernel has none.
        let is_mute = inner.cpus.iter().all(|cpu| cpu.state.progress == 0 && cpu.state.answered == 0);
        let timeout = if is_mute && self.is_foreign() { timeout.min(MUTE) } else { timeout };
        let deadline = Instant::now() + timeout;
        let tickets: Vec<u32> = inner.cpus.iter_mut().map(|cpu| cpu.state.ask()).collect();
        self.changed.notify_all();
        loop {
            if inner.cpus.iter().zip(&tickets).all(|(cpu, ticket)| cpu.state.answered >= *ticket) {
                return Ok(inner.answer());
            }
            if let Some(reason) = inner.ended.clone() {
                return Err(VmmError::Ended { reason });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                for (cpu, ticket) in inner.cpus.iter_mut().zip(tickets) {
                    cpu.state.withdraw(ticket);
                }
                return Err(VmmError::NoAnswer { timeout });
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_foreign(&self) -> bool {
        matches!(self.payload, Payload::Image { .. } | Payload::Linux)
    }

    /// Blocks a vCPU's thread.
    fn wait(&self, cpu: usize, micros: u32) {
        let mut inner = self.lock();
        let due = inner.cpus.get_mut(cpu).and_then(|cpu| cpu.next_due(Instant::now(), micros));
        while !inner.interrupted && inner.pending(cpu).is_none() {
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
    /// The ticket that waits for a vCPU's answer.
    fn pending(&self, cpu: usize) -> Option<u32> {
        self.cpus.get(cpu)?.state.pending()
    }

    /// All answers, added up.
    fn answer(&self) -> CheckReport {
        self.cpus.iter().map(|cpu| cpu.state.answer()).fold(CheckReport::default(), |sum, one| CheckReport {
            pages: sum.pages + one.pages,
            faults: sum.faults + one.faults,
        })
    }
}

impl Cpu {
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
            ports::JUMP_LOW => set_low(&mut self.largest_jump, value),
            ports::JUMP_HIGH => set_high(&mut self.largest_jump, value),
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

    /// None before time was read twice, and for payloads that read none.
    fn largest_jump_us(&self) -> Option<u64> {
        let us = u128::from(self.largest_jump) * 1000 / u128::from(self.counter_khz.max(1));
        (self.largest_jump > 0).then(|| u64::try_from(us).unwrap_or(u64::MAX))
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

    fn config(cpus: u32) -> GuestConfig {
        GuestConfig { memory_bytes: 8 << 20, cpus, payload: Payload::Idle, low_bytes: None }
    }

    fn alone() -> DebugPort {
        DebugPort::new(&config(1))
    }

    fn report_fault(port: &DebugPort, page: u32) {
        port.write(0, ports::FAULT_PAGE, page);
        port.write(0, ports::FAULT_WORD, 5);
        port.write(0, ports::FAULT_EXPECTED_LOW, 1);
        port.write(0, ports::FAULT_EXPECTED_HIGH, 2);
        port.write(0, ports::FAULT_FOUND_LOW, 3);
        port.write(0, ports::FAULT_FOUND_HIGH, 4);
    }

    fn saved(port: &DebugPort, cpu: usize) -> Section {
        let Saved::Section(section) = port.save(cpu).unwrap() else { panic!("it has a state") };
        section
    }

    #[test]
    fn the_first_fault_is_kept_and_all_are_counted() {
        let port = alone();
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
        let port = alone();
        port.write(0, ports::PROGRESS, 9);
        port.write(0, ports::FAULT_PAGE, 7);
        port.write(0, ports::FAULT_EXPECTED_LOW, 1);
        let crossed = saved(&port, 0);
        assert_eq!(crossed.needed, [0, 4], "only what differs from birth is needed");
        let target = alone();
        target.restore(0, &crossed).unwrap();
        target.write(0, ports::FAULT_FOUND_HIGH, 4);
        assert_eq!(target.report().progress, 9);
        assert!(target.report().first_fault.unwrap().starts_with("page 7 "));
    }

    #[test]
    fn a_wait_ends_for_a_pause_a_question_and_its_time() {
        let port = Arc::new(alone());
        port.interrupt();
        port.write(0, ports::WAIT, 0);
        port.allow();
        port.write(0, ports::WAIT, 1);
        let asker = Arc::clone(&port);
        let answer = std::thread::spawn(move || asker.verify(Duration::from_secs(10)));
        port.write(0, ports::WAIT, 0);
        let ticket = port.read(0, ports::COMMAND);
        assert_ne!(ticket, 0);
        port.write(0, ports::CHECK_PAGES, 12);
        port.write(0, ports::CHECK_FAULTS, 1);
        port.write(0, ports::CHECK_DONE, ticket);
        assert_eq!(answer.join().unwrap().unwrap(), CheckReport { pages: 12, faults: 1 });
        assert_eq!(port.read(0, ports::COMMAND), 0);
    }

    #[test]
    fn a_question_without_an_answer_is_taken_back() {
        let port = alone();
        let error = port.verify(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, VmmError::NoAnswer { .. }));
        assert_eq!(port.read(0, ports::COMMAND), 0);
        port.guest_ended("it crashed");
        let error = port.verify(Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "the guest has ended: it crashed");
    }

    #[test]
    fn a_late_payload_catches_up_only_a_little() {
        let mut cpu = Cpu::default();
        let start = Instant::now();
        assert_eq!(cpu.next_due(start, 0), None);
        assert_eq!(cpu.next_due(start, 5000), Some(start + Duration::from_millis(5)));
        let late = start + Duration::from_secs(1);
        let forgiven = start + Duration::from_millis(980);
        assert_eq!(cpu.next_due(late, 5000), Some(forgiven));
        assert_eq!(cpu.next_due(late, 5000), Some(forgiven + Duration::from_millis(5)));
    }

    #[test]
    fn a_state_of_another_device_is_refused() {
        let port = alone();
        let other = Section { name: "device/other".to_owned(), ..saved(&port, 0) };
        assert!(port.restore(0, &other).is_err());
        let nothing = Section { body: vec![0xa0], ..saved(&port, 0) };
        assert!(port.restore(0, &nothing).is_err());
    }

    #[test]
    fn each_vcpu_has_its_own_faults_and_answers() {
        let port = Arc::new(DebugPort::new(&config(2)));
        port.write(1, ports::FAULT_PAGE, 3);
        port.write(0, ports::FAULT_PAGE, 9);
        port.write(1, ports::FAULT_FOUND_HIGH, 0);
        port.write(1, ports::PROGRESS, 4);
        // 8 MiB of memory have an idle working set of 1024 pages: vCPU 1's share begins at 512.
        assert!(port.report().first_fault.unwrap().starts_with("vCPU 1: page 515 of the working set"));
        assert_eq!(port.progress_of_each(), [0, 4]);

        let asker = Arc::clone(&port);
        let answer = std::thread::spawn(move || asker.verify(Duration::from_secs(10)));
        for cpu in [1, 0] {
            port.write(cpu, ports::WAIT, 0);
            let ticket = port.read(cpu, ports::COMMAND);
            port.write(cpu, ports::CHECK_PAGES, 10);
            port.write(cpu, ports::CHECK_DONE, ticket);
        }
        assert_eq!(answer.join().unwrap().unwrap(), CheckReport { pages: 20, faults: 0 });

        let target = DebugPort::new(&config(2));
        target.restore(1, &saved(&port, 1)).unwrap();
        assert_eq!(target.progress_of_each(), [0, 4]);
        assert!(port.save(2).is_err());
    }
}
