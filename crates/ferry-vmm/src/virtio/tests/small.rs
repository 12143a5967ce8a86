//! Entropy and console.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ferry_migrate::Device as _;
use ferry_state::device::{VirtioEntropy, VirtioTransport};

use super::turn::Turn;

use super::*;

#[test]
fn random_bytes_are_random() {
    let rig = Rig::new(Entropy::open().unwrap(), memory());
    rig.device.resume().unwrap();
    rig.start();
    rig.request(0, 0, &[writes(BUFFERS, 64), writes(BUFFERS + 64, 8192)]);
    rig.request(0, 2, &[reads(BUFFERS, 16)]);
    rig.device.turn();
    assert_eq!(rig.used(0), [(0, 4096), (2, 0)]);
    let bytes = rig.bytes(BUFFERS, 4096);
    assert_ne!(bytes[..64], bytes[64..128]);
    assert!(bytes.chunks(16).all(|chunk| chunk != [0; 16]), "all of it");
    assert_eq!(rig.bytes(BUFFERS + 4096, 4096), vec![0; 4096]);
}

#[test]
fn a_console_writes_and_takes_what_fits() {
    let rig = Rig::new(Console::default(), memory());
    let console = ConsolePort::new(&rig.device);
    assert_eq!(console.send(b"early"), 0, "a quiet console takes nothing");
    rig.device.resume().unwrap();
    rig.start();
    let mut file = tempfile::tempfile().unwrap();
    console.write_to(vec![Arc::new(File::try_clone(&file).unwrap())]);
    let text: Vec<u8> = (0..10_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    rig.fill(BUFFERS, &text);
    rig.request(1, 0, &[reads(BUFFERS, 9000), reads(BUFFERS + 9000, 1000)]);
    rig.device.turn();
    let mut found = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut found).unwrap();
    assert!(found == text);

    assert_eq!(console.send(b"nobody listens"), 0);
    rig.request(0, 0, &[writes(BUFFERS, 4)]);
    rig.request(0, 1, &[writes(BUFFERS + 16, 4)]);
    assert_eq!(console.send(b"hello, you"), 8);
    assert_eq!(rig.used(0), [(0, 4), (1, 4)]);
    assert_eq!([rig.bytes(BUFFERS, 4), rig.bytes(BUFFERS + 16, 4)], [b"hell", b"o, y"]);
    assert_eq!(console.send(b"u"), 0);
    rig.device.quiesce().unwrap();
    rig.request(0, 2, &[writes(BUFFERS, 4)]);
    assert_eq!(console.send(b"u"), 0);
}

#[test]
fn a_console_that_nobody_reads_answers_its_driver_and_lets_it_pause() {
    let rig = Rig::new(Console::default(), memory());
    let console = ConsolePort::new(&rig.device);
    rig.device.resume().unwrap();
    rig.start();
    let (mut reads_it, writes_it) = io::pipe().unwrap();
    console.write_to(vec![Arc::new(OwnedFd::from(writes_it).into())]);
    let text: Vec<u8> = (0..300_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    rig.fill(BUFFERS, &text);
    rig.request(1, 0, &[reads(BUFFERS, 300_000)]);
    rig.device.turn();
    assert_eq!(rig.used(1), [(0, 0)]);
    rig.device.quiesce().unwrap();
    let mut found = vec![0; text.len()];
    reads_it.read_exact(&mut found).unwrap();
    assert!(found == text, "who reads late reads all");
}

/// A device that begins a request, and waits in its middle until the test lets it go on.
struct Slow(Mutex<(Sender<()>, Receiver<()>)>);

impl Backend for Slow {
    type State = VirtioEntropy;
    const NAME: &'static str = "slow";
    const ID: u32 = 4;
    const QUEUES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, _: &mut Turn<'_>) -> Result<(), Malformed> {
        let channels = self.0.lock().unwrap();
        channels.0.send(()).unwrap();
        channels.1.recv().unwrap();
        Ok(())
    }

    fn save(&self, transport: VirtioTransport) -> VirtioEntropy {
        VirtioEntropy { transport }
    }

    fn restore(&mut self, state: VirtioEntropy) -> Result<VirtioTransport, MachineError> {
        Ok(state.transport)
    }
}

#[test]
fn a_request_that_hangs_fails_the_pause_and_the_device_goes_on() {
    let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
    let rig = Rig::new(Slow(Mutex::new((begun, goes_on))), memory());
    rig.device.resume().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| rig.device.turn());
        begins.recv().unwrap();
        let error = rig.device.quiesce_within(Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("not answered within 50ms"), "{error}");
        // Nor does it hold up that other devices announce the guest.
        rig.device.announce();
        go_on.send(()).unwrap();
    });
    rig.device.save().unwrap_err();
    rig.device.quiesce_within(Duration::from_secs(20)).unwrap();
    rig.device.save().unwrap();
}

#[test]
fn a_thread_that_is_held_up_is_announced_to_without_waiting() {
    let rig = Rig::new(Entropy::open().unwrap(), memory());
    let mut thread = Thread::start(Arc::clone(&rig.device)).unwrap();
    thread.resume().unwrap();
    // The device is in use here: whoever waited for it would wait for ever.
    rig.device.with_backend(|_| thread.announce());
}
