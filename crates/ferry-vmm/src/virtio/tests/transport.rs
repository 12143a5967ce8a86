//! Registers and queues, with a driver that means no good.

use super::*;
use tempfile::NamedTempFile;

fn rig() -> (Rig<Block>, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let rig = Rig::new(Block::new(DiskImage::open(0, file.path(), false).unwrap(), 0), memory());
    rig.device.resume().unwrap();
    (rig, file)
}

#[test]
fn a_device_says_what_it_is_and_is_taken_only_with_what_it_offers() {
    let (rig, _file) = rig();
    assert_eq!(rig.get(0), 0x7472_6976);
    assert_eq!(rig.get(4), 2);
    assert_eq!(rig.get(8), 2);
    assert_eq!(rig.get(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(rig.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    rig.set(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(rig.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no such queue");
    let offered = rig.offered();
    assert!(rig.negotiate(offered));
    assert!(!rig.negotiate(offered | 1 << 40), "what was not offered is not taken");
    assert!(!rig.negotiate(offered & !(1 << 32)), "a driver of the old kind is not taken");
    let mut half = [0xff; 2];
    rig.device.read(0, &mut half);
    assert_eq!(half, [0; 2], "registers are read as a whole");
    rig.device.read(0x100 + 0x1000, &mut half);
    assert_eq!(half, [0; 2]);
}

#[test]
fn a_driver_that_starts_too_early_breaks_the_device_down_until_it_resets_it() {
    let (rig, _file) = rig();
    rig.set(reg::VIRTIO_MMIO_STATUS, 7);
    assert_eq!(rig.status() & 64, 64);
    assert!(rig.line.is_high());
    assert_eq!(rig.acknowledge(), 2);
    rig.start();
}

/// What a driver does to its queue, and what the device says.
fn breaks(what: &str, act: impl FnOnce(&Rig<Block>)) {
    let (rig, _file) = rig();
    rig.start();
    act(&rig);
    rig.device.turn();
    assert_eq!(rig.status(), 15 | 64, "{what}");
    assert_eq!(rig.acknowledge() & 2, 2, "{what}: the driver is told");
    let was = rig.used(0).len();
    rig.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    rig.device.turn();
    assert_eq!(rig.used(0).len(), was, "{what}: it does no more");
    // The reset brings it back.
    rig.start();
    rig.fill(BUFFERS, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.request(0, 0, &[reads(BUFFERS, 16), writes(BUFFERS + 16, 1)]);
    rig.device.turn();
    assert_eq!(rig.used(0), [(0, 1)], "{what}: after the reset it works");
}

#[test]
fn every_malformed_queue_stops_the_device_and_a_reset_brings_it_back() {
    let end = MEMORY as u64;
    breaks("a chain that is a loop", |rig| {
        rig.descriptor(0, 0, reads(BUFFERS, 16), NEXT, 1);
        rig.descriptor(0, 1, reads(BUFFERS, 16), NEXT, 0);
        rig.offer(0, 0);
    });
    breaks("a chain that leads out of the table", |rig| {
        rig.descriptor(0, 0, reads(BUFFERS, 16), NEXT, 16);
        rig.offer(0, 0);
    });
    breaks("a head out of the table", |rig| rig.offer(0, 99));
    breaks("a buffer behind memory", |rig| rig.request(0, 0, &[reads(end - 8, 16), writes(BUFFERS, 1)]));
    breaks("a buffer that wraps", |rig| rig.request(0, 0, &[reads(u64::MAX - 3, 16), writes(BUFFERS, 1)]));
    breaks("a chain without a status", |rig| rig.request(0, 0, &[reads(BUFFERS, 16)]));
    breaks("a short head", |rig| rig.request(0, 0, &[reads(BUFFERS, 15), writes(BUFFERS, 1)]));
    breaks("to be read behind to be written", |rig| {
        rig.request(0, 0, &[reads(BUFFERS, 16), writes(BUFFERS, 1), reads(BUFFERS, 1)]);
    });
    breaks("an index that jumps", |rig| {
        let [_, available, _] = Rig::<Block>::rings(0);
        rig.memory.write_obj(1000_u16, GuestAddress(available + 2)).unwrap();
    });
    let indirect = |address, length| Buffer { address, length, is_written: false };
    breaks("an indirect table behind memory", |rig| {
        rig.descriptor(0, 0, indirect(end, 64), INDIRECT, 0);
        rig.offer(0, 0);
    });
    breaks("an indirect table of half a descriptor", |rig| {
        rig.descriptor(0, 0, indirect(BUFFERS, 24), INDIRECT, 0);
        rig.offer(0, 0);
    });
    breaks("an indirect table that is longer than the queue", |rig| {
        for at in 0..32_u64 {
            let mut bytes = BUFFERS.to_le_bytes().to_vec();
            bytes.extend([16, 0, 0, 0, 1, 0, u8::try_from(at).unwrap() + 1, 0]);
            rig.fill(BUFFERS + 0x1000 + at * 16, &bytes);
        }
        rig.descriptor(0, 0, indirect(BUFFERS + 0x1000, 32 * 16), INDIRECT, 0);
        rig.offer(0, 0);
    });
}

#[test]
fn queues_that_cannot_be_stop_the_device() {
    let [table, available, used] = Rig::<Block>::rings(0);
    let end = MEMORY as u64;
    for (what, size, rings) in [
        ("no entry", 0, [table, available, used]),
        ("too many", 512, [table, available, used]),
        ("far too many", u32::MAX, [table, available, used]),
        ("no power of two", 12, [table, available, used]),
        ("a table behind memory", 16, [end, available, used]),
        ("a ring across the end", 256, [table, end - 32, used]),
        ("a used ring nowhere", 16, [table, available, 1 << 40]),
        ("a used ring at the end of all", 16, [table, available, !3]),
        ("no table", 16, [0, available, used]),
        ("a table at an odd place", 16, [table + 8, available, used]),
        ("a ring at an odd place", 16, [table, available + 1, used]),
        ("a used ring at an odd place", 16, [table, available, used + 2]),
    ] {
        let (rig, _file) = rig();
        assert!(rig.negotiate(rig.offered()));
        rig.place(0, size, rings);
        rig.set(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(rig.status(), 15 | 64, "{what}");
        assert_eq!(rig.acknowledge(), 2, "{what}");
        rig.start();
    }
}

#[test]
fn a_driver_without_event_indices_gets_its_interrupts_too() {
    let (rig, _file) = rig();
    rig.start_with(rig.offered() & !(1 << 29));
    rig.fill(BUFFERS, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for turn in 1..4_u32 {
        rig.request(0, 0, &[reads(BUFFERS, 16), writes(BUFFERS + 16, 1)]);
        rig.device.turn();
        assert_eq!(rig.used(0).len(), turn as usize);
        assert_eq!(rig.line.0.load(Ordering::SeqCst), turn);
        assert_eq!(rig.acknowledge(), 1);
    }
}
