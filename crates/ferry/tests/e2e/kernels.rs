//! `ferry run --kernel` with kernels of a few instructions: they talk over the console, restart and switch themselves off.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::support::boot::{ECHO, PRINT, RESTART, kernel};
use crate::support::house::House;
use crate::support::{kvm_is_here, wait_until};

#[test]
fn what_is_typed_goes_to_the_guest_and_its_output_to_terminal_and_file() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("echo"), kernel(ECHO)).unwrap();
    let kernel = format!("--kernel={}", house.path("echo").display());
    let serial = format!("--serial={}", house.path("log").display());
    let words = ["run", "--backend=kvm", "--id=g", "--memory=64M", "--console", &kernel, &serial];
    let mut command = house.command(&words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // More than the port holds at once, and what a terminal would keep for itself.
    let typed = format!("{}\x03\x01x q", "0123456789".repeat(20));
    process.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {:?}", output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("guest `g` runs on kvm"), "{said}");
    assert_eq!(lines[1..], [format!("{typed}guest `g` switched itself off")], "{said}");
    assert_eq!(std::fs::read_to_string(house.path("log")).unwrap(), typed);
    house.json(&words).failed(2, &["--console would mix"]);
}

#[test]
fn who_does_not_read_the_console_holds_neither_guest_nor_move_up() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("print"), kernel(PRINT)).unwrap();
    let kernel = format!("--kernel={}", house.path("print").display());
    let words = ["run", "--backend=kvm", "--id=g", "--memory=64M", "--console", &kernel];
    let mut command = house.command(&words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let is_here = || house.json(&["status", "g"]).status == 0;
    wait_until("it runs", is_here);
    // Its output is never read; its vCPU is paused all the same.
    let target = house.receiver(&[]);
    house.migrate("g", &target.listen).document();
    assert!(process.wait().unwrap().success());
}

/// It begins anew again and again, and one of these times it is elsewhere.
#[test]
fn a_guest_that_restarts_keeps_name_epoch_and_disk_and_can_be_moved() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    let flag = |name: &str, path: &str| format!("--{name}={}", house.path(path).display());
    std::fs::write(house.path("restart"), kernel(RESTART)).unwrap();
    std::fs::write(house.path("disk"), vec![0; 65536]).unwrap();
    let board = ["--memory=64M", &flag("kernel", "restart"), &flag("disk", "disk"), "--entropy"];
    let begun = |log: &str| std::fs::read(house.path(log)).unwrap_or_default().len();
    let is_locked = || {
        let second = house.json(&[&["run", "--backend=kvm", "--id=h"][..], &board].concat());
        second.failed(1, &["/disk"]);
    };
    let source = house.booted("g", &[&board[..], &[&flag("serial", "here")]].concat());
    wait_until("it has begun three times", || begun("here") >= 3);
    is_locked();
    assert_eq!(
        (source.status()["epoch"].as_u64(), source.status()["custody"].as_bool()),
        (Some(1), Some(true))
    );
    let place = format!("--disk=0={}", house.path("disk").display());
    let target = house.receiver(&[&flag("serial", "there"), &flag("kernel", "restart"), &place]);
    let report = house.migrate("g", &target.listen).document();
    assert_eq!((&report["outcome"], &report["epoch"], source.end().status), (&"moved".into(), &2.into(), 0));
    let moved = begun("here");
    wait_until("it begins there, again and again", || begun("there") >= 3);
    is_locked();
    assert_eq!((target.status()["epoch"].as_u64(), begun("here")), (Some(2), moved));
    assert_eq!(std::fs::read(house.path("there")).unwrap()[..3], *b"KKK");
    // Where nobody said which kernel is its own it comes, and does not begin anew.
    let last = house.receiver(&[&place]);
    assert_eq!(house.migrate("g", &last.listen).document()["outcome"], "moved");
    assert_eq!(target.end().status, 0);
    let ended = last.end();
    ended.failed(
        1,
        &["it asked for a restart", "was not told where it has the guest's kernel", "--kernel PATH"],
    );
    house.runners();
}

#[test]
fn a_power_off_while_it_is_moved_is_the_end_and_no_failure_of_the_guest() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("echo"), kernel(ECHO)).unwrap();
    let kernel = format!("--kernel={}", house.path("echo").display());
    let words = ["run", "--backend=kvm", "--id=g", "--memory=64M", "--console", &kernel];
    let mut command = house.command(&words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    wait_until("it runs", || house.json(&["status", "g"]).status == 0);
    let target = house.receiver(&["--stop-at=build"]);
    let migrating = house.migrating("g", &target);
    target.await_stop();
    process.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    let mut said = [0; 1];
    let mut output = process.stdout.take().unwrap();
    wait_until("it is off", || output.read(&mut said).unwrap() == 1 && said == *b"q");
    target.resume();
    migrating.end().failed(4, &["it switched itself off"]);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("guest `g` switched itself off\n"), "{rest}");
    assert!(process.wait().unwrap().success());
}
