//! `--console` on a terminal: it is as it was whatever ends or stops the process, and no end of it is the guest's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::support::boot::{DEAF, ECHO, kernel};
use crate::support::house::House;
use crate::support::{PATIENCE, kvm_is_here, wait_until};

/// A guest whose console is a terminal of its own.
struct OnTerminal {
    house: House,
    child: Child,
    /// The user's side, and the program's, which is held open to be looked at.
    user: File,
    terminal: OwnedFd,
}

impl OnTerminal {
    /// The terminal of no session: it outlives the process.
    fn start(program: &[u8]) -> Self {
        Self::begin(program, |command| command)
    }

    /// The terminal of the process's own session, as a shell's is: it comes with foreground and hang-up.
    fn start_session(program: &[u8]) -> Self {
        Self::begin(program, |command| {
            let mut session = Command::new("setsid");
            session.arg("-c").arg(command.get_program()).args(command.get_args());
            for (name, value) in command.get_envs() {
                value.map(|value| session.env(name, value));
            }
            session
        })
    }

    fn begin(program: &[u8], wrap: impl FnOnce(Command) -> Command) -> Self {
        let house = House::new("kvm");
        std::fs::write(house.path("kernel"), kernel(program)).unwrap();
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(ptsname(&user, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        let kernel = format!("--kernel={}", house.path("kernel").display());
        let words = ["run", "--backend=kvm", "--id=g", "--memory=64M", "--console", &kernel];
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = wrap(house.command(&words));
        let child = command.stdin(end()).stdout(end()).stderr(Stdio::null()).spawn().unwrap();
        let started = Self { house, child, user: File::from(user), terminal };
        wait_until("the terminal is raw", || started.is_raw());
        started
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()).unwrap_or('X')
    }

    fn runs(&self) -> bool {
        self.house.json(&["status", "g"]).document()["state"] == "running"
    }

    /// Waits until the terminal shows this.
    fn shows(&mut self, text: &str) {
        let (mut seen, begun) = (Vec::new(), Instant::now());
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(begun.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&seen));
            let mut some = [0; 256];
            let length = self.user.read(&mut some).unwrap();
            seen.extend_from_slice(&some[..length]);
        }
    }

    /// How it ended: its status, or none for a signal.
    fn ended(&mut self) -> Option<i32> {
        wait_until("it ends", || self.child.try_wait().unwrap().is_some());
        assert!(!self.is_raw(), "the terminal is as it was");
        self.child.try_wait().unwrap().unwrap().code()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_terminal_is_as_it_was_whatever_ends_the_process() {
    if !kvm_is_here() {
        return;
    }
    for (signal, status) in [(Signal::TERM, Some(0)), (Signal::INT, Some(0)), (Signal::QUIT, None)] {
        let mut guest = OnTerminal::start(DEAF);
        guest.send(signal);
        assert_eq!(guest.ended(), status, "{signal:?}");
    }
}

#[test]
fn a_process_that_is_stopped_gives_the_terminal_back_meanwhile() {
    if !kvm_is_here() {
        return;
    }
    for (guest, is_in_front) in [(OnTerminal::start_session(DEAF), true), (OnTerminal::start(DEAF), false)] {
        guest.send(Signal::TSTP);
        wait_until("it stops", || guest.state() == 'T');
        assert!(!guest.is_raw());
        guest.send(Signal::CONT);
        if is_in_front {
            wait_until("the terminal is raw again", || guest.is_raw());
        }
        assert!(guest.runs());
        assert_eq!(guest.is_raw(), is_in_front, "nobody takes the terminal from the background");
    }
}

#[test]
fn a_guest_that_does_not_read_can_be_ended_from_the_terminal() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = OnTerminal::start(DEAF);
    // More than the port, the pieces that wait and the terminal hold together.
    for _ in 0..64 {
        guest.user.write_all(&[b'x'; 1024]).unwrap();
    }
    guest.user.write_all(b"\x01x").unwrap();
    assert_eq!(guest.ended(), Some(0));
}

#[test]
fn a_terminal_that_goes_away_ends_nothing() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = OnTerminal::start_session(ECHO);
    guest.user.write_all(b"hello").unwrap();
    guest.shows("hello");
    // With the user's side the terminal goes, and SIGHUP comes.
    guest.user = File::open("/dev/null").unwrap();
    wait_until("the terminal is gone", || tcgetattr(&guest.terminal).is_err());
    guest.send(Signal::HUP);
    assert!(guest.runs());
    let target = guest.house.receiver(&[]);
    guest.house.migrate("g", &target.listen).document();
    wait_until("it ends", || guest.child.try_wait().unwrap().is_some());
    assert_eq!(guest.child.try_wait().unwrap().unwrap().code(), Some(0));
    assert_eq!(target.status()["state"], "running");
}
