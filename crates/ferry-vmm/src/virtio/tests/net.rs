//! The network card, on one end of a pair of sockets that keep frames apart as a tap does.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use ferry_migrate::{Device as _, Saved};

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const PACKET: u64 = BUFFERS;
const ROOM: u64 = BUFFERS + 0x2000;

fn rig_with(mac: [u8; 6]) -> (Rig<Net>, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let rig = Rig::new(Net::new(near.into(), mac), memory());
    rig.device.resume().unwrap();
    (rig, far)
}

fn rig() -> (Rig<Net>, UnixDatagram) {
    let (rig, far) = rig_with(MAC);
    rig.start();
    (rig, far)
}

fn frame(length: usize, with: u8) -> Vec<u8> {
    vec![with; length]
}

fn nothing(far: &UnixDatagram) -> bool {
    far.set_nonblocking(true).unwrap();
    let is_empty = far.recv(&mut [0; 2048]).is_err();
    far.set_nonblocking(false).unwrap();
    is_empty
}

impl Rig<Net> {
    fn status_bits(&self) -> u16 {
        let mut status = [0; 2];
        self.device.read(0x106, &mut status);
        u16::from_le_bytes(status)
    }
}

#[test]
fn frames_go_both_ways() {
    let (rig, far) = rig();
    let mut config = [0; 8];
    rig.device.read(0x100, &mut config);
    assert_eq!((&config[..6], &config[6..]), (&MAC[..], &[1, 0][..]));

    rig.fill(PACKET, &[0; 12]);
    rig.fill(PACKET + 12, &frame(100, 0xaa));
    rig.request(1, 0, &[reads(PACKET, 12), reads(PACKET + 12, 60), reads(PACKET + 72, 40)]);
    rig.device.turn();
    let mut found = [0; 2048];
    assert_eq!(far.recv(&mut found).unwrap(), 100);
    assert_eq!(found[..100], frame(100, 0xaa));
    assert_eq!(rig.used(1), [(0, 0)]);

    // A frame that comes before there is room waits where it is.
    far.send(&frame(700, 0xbb)).unwrap();
    rig.device.turn();
    assert_eq!(rig.used(0), []);
    rig.request(0, 0, &[writes(ROOM, 12), writes(ROOM + 12, 512), writes(ROOM + 0x1000, 1024)]);
    rig.device.turn();
    assert_eq!(rig.used(0), [(0, 712)]);
    assert_eq!(rig.bytes(ROOM, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.bytes(ROOM + 12, 512), frame(512, 0xbb));
    assert_eq!(rig.bytes(ROOM + 0x1000, 189), [frame(188, 0xbb), vec![0]].concat());
    assert_eq!(rig.acknowledge(), 1);
}

#[test]
fn what_does_not_fit_is_lost_and_its_room_is_kept() {
    let (rig, far) = rig();
    rig.request(0, 0, &[writes(ROOM, 112)]);
    far.send(&frame(101, 1)).unwrap();
    far.send(&frame(100, 2)).unwrap();
    rig.device.turn();
    assert_eq!(rig.used(0), [(0, 112)]);
    assert_eq!(rig.bytes(ROOM + 12, 100), frame(100, 2));
    // Too short and too long for a frame: done, and not sent.
    rig.request(1, 0, &[reads(PACKET, 25)]);
    rig.request(1, 1, &[reads(PACKET, 0x1_2000)]);
    rig.device.turn();
    assert_eq!(rig.used(1).len(), 2);
    assert!(nothing(&far));
    assert_eq!(rig.status(), 15);
}

#[test]
fn a_tap_that_fails_loses_frames_and_nothing_else() {
    let (rig, far) = rig();
    drop(far);
    rig.request(1, 0, &[reads(PACKET, 12), reads(PACKET, 100)]);
    rig.request(0, 0, &[writes(ROOM, 2000)]);
    rig.device.turn();
    assert_eq!((rig.used(1).len(), rig.used(0).len()), (1, 0));
    assert_eq!(rig.status(), 15);
}

#[test]
fn the_network_and_the_guest_are_told_where_the_guest_is() {
    let (rig, far) = rig();
    let mut thread = Thread::start(Arc::clone(&rig.device)).unwrap();
    let start = Instant::now();
    thread.announce();
    assert!(start.elapsed() < Duration::from_millis(500), "it does not wait");
    let mut found = [0; 2048];
    for _ in 0..5 {
        assert_eq!(far.recv(&mut found).unwrap(), 60);
        assert_eq!((&found[6..12], &found[12..14]), (&MAC[..], &[0x80, 0x35][..]));
    }
    assert!(start.elapsed() >= Duration::from_millis(700), "not all at once");
    assert!(nothing(&far));
    assert_eq!(rig.status_bits(), 3);
    assert_eq!(rig.acknowledge(), 2);
    thread.quiesce().unwrap();

    // What the guest has not answered yet crosses.
    let Saved::Section(section) = thread.save().unwrap() else { panic!("nothing is saved") };
    let (target, _tap) = rig_with(MAC);
    target.device.quiesce().unwrap();
    let target = Rig {
        memory: rig.memory.clone(),
        ..Rig::new(Net::new(UnixDatagram::pair().unwrap().0.into(), MAC), rig.memory.clone())
    };
    target.device.restore(&section).unwrap();
    target.device.resume().unwrap();
    assert_eq!(target.status_bits(), 3);
    target.fill(PACKET, &[3, 0]);
    target.fill(ROOM, &[0xff]);
    target.request(2, 0, &[reads(PACKET, 2), writes(ROOM, 1)]);
    target.device.turn();
    assert_eq!((target.bytes(ROOM, 1), target.status_bits()), (vec![0], 1));
    assert_eq!(target.acknowledge(), 1, "that the bit is gone needs no interrupt");
    // An order that the card does not know.
    target.fill(PACKET, &[1, 1]);
    target.request(2, 0, &[reads(PACKET, 2), writes(ROOM, 1)]);
    target.device.turn();
    assert_eq!(target.bytes(ROOM, 1), [1]);
}

#[test]
fn a_driver_that_did_not_take_announcements_is_not_asked_for_one() {
    let (rig, far) = rig_with(MAC);
    rig.start_with(rig.offered() & !(1 << 21));
    rig.device.with_backend(Backend::announce);
    rig.device.turn();
    assert_eq!(far.recv(&mut [0; 2048]).unwrap(), 60);
    assert_eq!((rig.status_bits(), rig.acknowledge()), (1, 0));
}

#[test]
fn another_card_is_refused() {
    let (source, _far) = rig();
    source.device.quiesce().unwrap();
    let Saved::Section(section) = source.device.save().unwrap() else { panic!("nothing is saved") };
    let (target, _far) = rig_with([2, 0, 0, 0, 0, 8]);
    let error = target.device.restore(&section).unwrap_err().to_string();
    assert!(error.contains("has the address [02, 00, 00, 00, 00, 07], this one"), "{error}");
}

#[test]
fn orders_that_are_none_stop_the_card() {
    for buffers in [&[reads(PACKET, 1), writes(ROOM, 1)][..], &[reads(PACKET, 2)]] {
        let (rig, _far) = rig();
        rig.request(2, 0, buffers);
        rig.device.turn();
        assert_eq!(rig.status(), 15 | 64);
    }
}

/// A card whose tap was taken away: its descriptor is there, and nothing behind it.
fn without_tap() -> Rig<Net> {
    let rig = Rig::new(Net::new(std::fs::File::open("/dev/null").unwrap().into(), MAC), memory());
    rig.device.resume().unwrap();
    rig.start();
    rig
}

#[test]
fn a_tap_that_is_taken_away_is_a_link_that_is_down_until_the_guest_has_another() {
    let rig = without_tap();
    rig.request(1, 0, &[reads(PACKET, 12), reads(PACKET, 100)]);
    rig.device.turn();
    assert_eq!((rig.status_bits(), rig.acknowledge()), (0, 3), "the driver is told");
    rig.request(1, 0, &[reads(PACKET, 12), reads(PACKET, 100)]);
    rig.request(0, 0, &[writes(ROOM, 2000)]);
    rig.device.announce();
    assert_eq!(rig.device.turn(), None, "there is nobody to be told");
    assert_eq!((rig.used(1).len(), rig.used(0).len(), rig.status()), (2, 0, 15));
    rig.acknowledge();
    rig.start();
    assert_eq!(rig.status_bits() & 1, 0, "also after a reset");
    rig.device.quiesce().unwrap();

    let Saved::Section(section) = rig.device.save().unwrap() else { panic!("nothing is saved") };
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let target = Rig::new(Net::new(near.into(), MAC), rig.memory.clone());
    target.device.restore(&section).unwrap();
    target.device.resume().unwrap();
    target.device.turn();
    assert_eq!((target.status_bits(), target.acknowledge()), (1, 2));
    target.request(1, 0, &[reads(PACKET, 12), reads(PACKET, 100)]);
    target.device.turn();
    assert_eq!(far.recv(&mut [0; 2048]).unwrap(), 100);
}

#[test]
fn a_tap_that_ends_in_a_read_is_noticed_as_well() {
    let rig = without_tap();
    rig.request(0, 0, &[writes(ROOM, 2000)]);
    rig.device.turn();
    assert_eq!((rig.status_bits(), rig.used(0).len(), rig.status()), (0, 0, 15));
}
