//! The serial port of guests on the real KVM, across moves by the engine.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_migrate::journal::Volatile;
use ferry_migrate::{Builder, Listener, Machine, MigrateOptions, Migration, ReceiveOptions, Reception};
use ferry_protocol::{Epoch, InstanceId, SessionId, SourceConfig, SourceOutcome};
use ferry_state::device;
use ferry_vmm::{Guest, KvmBuilder, KvmGuest, SerialPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::arch;
use crate::common::{IDLE, PATIENCE, born, code_address, custody, kvm_is_here, nap, wait_until};

/// A guest that runs this program instead of its payload; its output goes to the file.
fn runs(program: &[u8], output: &std::path::Path) -> KvmGuest {
    let mut guest = born(&IDLE);
    guest.ram().write(code_address(), program).unwrap();
    guest.devices().serial().write_to(vec![created(output)]);
    guest.resume(custody()).unwrap();
    guest
}

fn created(path: &std::path::Path) -> Arc<File> {
    Arc::new(File::create(path).unwrap())
}

/// Moves a guest by the engine, over a Unix socket; its output goes on in the file.
fn moved(mut source: KvmGuest, epoch: u64, folder: &std::path::Path, output: Arc<File>) -> KvmGuest {
    let listener = Listener::bind(&format!("unix:{}/s{epoch}", folder.display()).parse().unwrap(), false);
    let listener = listener.unwrap();
    let address = listener.address().clone();
    let target = std::thread::spawn(move || {
        let options = ReceiveOptions::new(Arc::new(Volatile::new(InstanceId(epoch))));
        let mut builder = KvmBuilder::new().unwrap().with_serial_output(vec![output]);
        Reception::new(listener, options).unwrap().wait(&mut builder, &()).unwrap().machine
    });
    let guest = "guest".parse().unwrap();
    let config = SourceConfig::new(guest, SessionId(epoch), Epoch(epoch), source.description());
    let journal = Arc::new(Volatile::new(InstanceId(epoch)));
    let (report, _) = Migration::new(MigrateOptions::new(address, config, journal)).run(&mut source, &());
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    drop(source);
    target.join().unwrap()
}

fn length(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn a_guest_that_prints_all_the_time_loses_no_byte_and_prints_none_twice() {
    if !kvm_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = |number: u64| folder.path().join(format!("out-{number}"));
    let mut guest = runs(&arch::print(), &output(1));
    for epoch in 2..8 {
        wait_until("it prints", || length(&output(epoch - 1)) > 2000 + epoch * 37);
        guest = moved(guest, epoch, folder.path(), created(&output(epoch)));
    }
    wait_until("it prints", || length(&output(7)) > 2000);
    drop(guest);

    let parts: Vec<Vec<u8>> = (1..8).map(|number| std::fs::read(output(number)).unwrap()).collect();
    let all = parts.concat();
    let undisturbed = (0..=all.len() / 9).flat_map(|number| format!("{number:08x}\n").into_bytes());
    let first = all.iter().zip(undisturbed).position(|(is, should)| *is != should);
    assert_eq!(first, None, "the first wrong byte of {}", all.len());
    assert!(parts.iter().any(|part| part.len() % 9 != 0), "it was moved in the middle of a line");
}

#[test]
fn a_guest_whose_output_nobody_reads_runs_on_and_pauses() {
    if !kvm_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guest = runs(&arch::print(), &folder.path().join("out"));
    let (mut reads, mut writes) = std::io::pipe().unwrap();
    // It is full soon.
    writes.write_all(&vec![b'\n'; 64_000]).unwrap();
    let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writes)));
    guest.devices().serial().write_to(vec![Arc::clone(&pipe)]);
    wait_until("the pipe is full", || {
        let mut polled = [PollFd::new(&*pipe, PollFlags::OUT)];
        poll(&mut polled, Some(&Timespec::default())).unwrap() == 0
    });
    nap(Duration::from_millis(20));
    let began = Instant::now();
    let custody = guest.pause().unwrap();
    assert!(began.elapsed() < PATIENCE / 4, "the pause waited for a reader");
    guest.resume(custody).unwrap();
    let mut found = vec![0; 72_000];
    reads.read_exact(&mut found).unwrap();
    drop((guest, pipe));
    let numbers = found.split(|byte| *byte == b'\n').filter(|line| line.len() == 8);
    let numbers: Vec<_> =
        numbers.map(|line| u32::from_str_radix(std::str::from_utf8(line).unwrap(), 16).unwrap()).collect();
    assert!(numbers.len() > 800 && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no line is lost");
}

#[test]
fn input_that_a_moving_guest_has_not_read_arrives_once_and_in_order() {
    if !kvm_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut guest = runs(&arch::echo(), &path);
    let input: Vec<u8> = (0..4000_u32).map(|number| b'a' + u8::try_from(number * 7 % 26).unwrap()).collect();
    let mut given = 0;
    let mut give = |port: &SerialPort, most: usize| {
        let end = input.len().min(given + most);
        given += port.send(&input[given..end]);
        given
    };
    for epoch in 2..7 {
        let port = guest.devices().serial().clone();
        wait_until("it takes input", || give(&port, 100) >= 700 * usize::try_from(epoch - 1).unwrap());
        // Some of it waits in the port when the guest is paused.
        give(&port, 64);
        guest =
            moved(guest, epoch, folder.path(), Arc::new(File::options().append(true).open(&path).unwrap()));
        assert_eq!(port.send(b"late"), 0, "a port that its guest has left takes nothing");
    }
    let port = guest.devices().serial().clone();
    wait_until("it takes all input", || give(&port, 100) == input.len());
    wait_until("it echoes all", || length(&path) >= 4000);
    assert_eq!(std::fs::read(&path).unwrap(), input);
}

#[test]
fn an_interrupt_is_raised_once_and_crosses_with_the_controller() {
    if !kvm_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut source = runs(&arch::deaf(), &path);
    wait_until("it is ready", || length(&path) == 1);
    assert_eq!(source.devices().serial().send(b"hello"), 5);
    drop(source.pause().unwrap());
    assert_eq!(source.devices().serial().send(b"world"), 0, "a paused guest takes no input");
    let (mut state, devices) = (source.capture().unwrap(), source.capture_devices().unwrap());
    let serial: device::Serial = devices.require(0).unwrap();
    assert_eq!((serial.input.as_slice(), serial.interrupt_enable), (&b"hello"[..], 1));
    assert_eq!(serial.interrupt_identification & 4, 4, "received data waits");
    let section = devices.section("device/serial", 0).unwrap().unwrap();
    assert_eq!(section.needed, [2, 3, 5, 9], "no more than what differs from birth");
    assert!(arch::serial_interrupt_waits(&state), "the interrupt waits in the controller");

    // The guest has had the interrupt and not read the byte yet: it must not come again.
    arch::take_serial_interrupt(&mut state);
    assert!(!arch::serial_interrupt_waits(&state));
    let mut target = KvmBuilder::new().unwrap().build(&source.description()).unwrap();
    target.restore(&state).unwrap();
    target.restore_devices(&devices).unwrap();
    assert_eq!(target.capture_devices().unwrap(), devices);
    assert!(!arch::serial_interrupt_waits(&target.capture().unwrap()));
}

#[test]
fn a_state_of_no_serial_port_is_refused() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = born(&IDLE);
    let state = guest.capture_devices().unwrap();
    let names: Vec<&str> = state.sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(names, ["device/debug-port", "device/serial"]);
    let mut crowded: device::Serial = state.require(0).unwrap();
    crowded.input = vec![0; 65];
    let mut bad = state.clone();
    bad.sections[1] = ferry_state::Section::of(&crowded, 0, None).unwrap();
    assert!(guest.restore_devices(&bad).is_err());
    bad.sections.truncate(1);
    let error = born(&IDLE).restore_devices(&bad).unwrap_err().to_string();
    assert!(error.contains("no section of `device/serial` (index 0)"), "{error}");
}

#[test]
fn a_running_guest_answers_beside_its_serial_port() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = born(&IDLE);
    guest.resume(custody()).unwrap();
    nap(Duration::from_millis(1));
    assert_eq!(guest.serial().unwrap().send(b"nobody reads this"), 17);
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
}
