//! `--console` on a terminal: it is as it was whatever ends or stops the process, and no end of it is the guest's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr, tcgetpgrp};

use crate::support::boot::{DEAF, ECHO, kernel};
use crate::support::house::House;
use crate::support::{PATIENCE, kvm_is_here, let_pass, skipped, wait_until};

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

    /// The terminal of a shell's session, which runs the program as its job: `SCRIPT` has it as `"$@"`. It ends with the shell.
    fn start_job(program: &[u8], script: &str) -> Self {
        Self::begin(program, |command| {
            let mut shell = Command::new("setsid");
            shell.args(["-c", "bash", "-mc", script, "bash"]).arg(command.get_program());
            shell.args(command.get_args()).arg("--die-with-parent");
            for (name, value) in command.get_envs() {
                value.map(|value| shell.env(name, value));
            }
            shell
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
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
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
        state_of(self.child.id().cast_signed())
    }

    fn runs(&self) -> bool {
        self.house.json(&["status", "g"]).document()["state"] == "running"
    }

    /// Waits until the terminal shows this.
    fn shows(&mut self, text: &str) {
        let (mut seen, begun) = (Vec::new(), Instant::now());
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(begun.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&seen));
            let mut ready = [PollFd::new(&self.user, PollFlags::IN)];
            if poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap() == 0 {
                continue;
            }
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

/// The kernel's letter for what a process does.
fn state_of(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()).unwrap_or('X')
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
fn an_end_that_a_move_holds_up_is_said_as_often_as_it_is_asked_for() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = OnTerminal::start(DEAF);
    let target = guest.house.receiver(&["--stop-at", "restore"]);
    let migrating = guest.house.migrating("g", &target);
    target.await_stop();
    for _ in 0..2 {
        guest.user.write_all(b"\x01x").unwrap();
        guest.shows("the end of the guest is waited for");
    }
    // The move fails, and the guest that stays ends.
    target.kill();
    assert_eq!(guest.ended(), Some(0));
    assert_ne!(migrating.end().status, 0);
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

#[test]
fn a_guest_runs_on_in_the_background_and_has_the_terminal_again_in_front() {
    if !kvm_is_here() {
        return;
    }
    if Command::new("bash").args(["-c", ":"]).status().is_err() {
        return skipped("no bash, whose jobs go to the background");
    }
    let script =
        r#""$@"; bg; echo behind; read -r word; echo "the shell has $word"; fg; bg; echo again; wait %1"#;
    let mut guest = OnTerminal::start_job(ECHO, script);
    let job = tcgetpgrp(&guest.user).unwrap();
    assert_ne!(job, Pid::from_child(&guest.child), "the shell has jobs");
    let runs_behind = |guest: &OnTerminal| {
        assert_ne!(tcgetpgrp(&guest.user).unwrap(), job);
        // Several looks: what would stop it comes once its reader runs again.
        for _ in 0..5 {
            let_pass(Duration::from_millis(50));
            assert_ne!(state_of(job.as_raw_nonzero().get()), 'T');
        }
        assert!(guest.runs() && !guest.is_raw());
    };
    kill_process(job, Signal::TSTP).unwrap();
    guest.shows("behind");
    runs_behind(&guest);
    guest.user.write_all(b"line\n").unwrap();
    guest.shows("the shell has line");
    // Bash says nothing to a running job that it brings to the front.
    wait_until("the terminal is raw again", || guest.is_raw());
    guest.user.write_all(b"hello").unwrap();
    guest.shows("hello");
    kill_process(job, Signal::TSTP).unwrap();
    guest.shows("again");
    runs_behind(&guest);
    kill_process(job, Signal::TERM).unwrap();
    assert_eq!(guest.ended(), Some(0), "the status of the job");
}
