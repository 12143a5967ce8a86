//! Entropy and console.

use std::fs::File;
use std::io::{Read, Seek};

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
