//! How switches learn where a guest is now: reverse ARP requests from its address, a few with growing gaps, because
//! the first may be lost while a port of a switch wakes up.
//!
//! Nobody answers them: what counts is the sender's address. Facts: RFC 903 (the packet), RFC 826 (its form).

use std::time::{Duration, Instant};

/// How many are sent.
const FRAMES: u32 = 5;

/// The gap behind the first; each gap is so much longer than the one before.
const GAP: Duration = Duration::from_millis(50);
const GAP_STEP: Duration = Duration::from_millis(100);

/// Bytes of the shortest frame of Ethernet, without its checksum.
const FRAME_BYTES: usize = 60;

/// An announcement under way.
#[derive(Debug)]
pub(super) struct Announcement {
    sent: u32,
    due: Instant,
}

impl Announcement {
    /// One whose first frame is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: 0, due: now }
    }

    /// When the next frame is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The frame that is due, if one is; and whether none comes after it.
    pub(super) fn due_frame(&mut self, mac: [u8; 6], now: Instant) -> (Option<[u8; FRAME_BYTES]>, bool) {
        if now < self.due {
            return (None, false);
        }
        self.due = now + GAP + GAP_STEP * self.sent;
        self.sent += 1;
        (Some(frame(mac)), self.sent >= FRAMES)
    }
}

/// A request for the protocol address of `mac`, from `mac` to all.
fn frame(mac: [u8; 6]) -> [u8; FRAME_BYTES] {
    const ETHERTYPE: [u8; 2] = [0x80, 0x35];
    // Hardware: Ethernet; protocol: IPv4; the lengths of their addresses; operation 3: request reverse.
    const KIND: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    const NO_ADDRESS: [u8; 4] = [0; 4];
    let parts: [&[u8]; 8] = [&[0xff; 6], &mac, &ETHERTYPE, &KIND, &mac, &NO_ADDRESS, &mac, &NO_ADDRESS];
    let mut frame = [0; FRAME_BYTES];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_frames_with_growing_gaps() {
        let (start, mac) = (Instant::now(), [2, 0, 0, 0, 0, 7]);
        let mut announcement = Announcement::new(start);
        let mut gaps = Vec::new();
        let mut now = start;
        loop {
            let (frame, is_over) = announcement.due_frame(mac, now);
            assert_eq!(frame, Some(super::frame(mac)));
            if is_over {
                break;
            }
            assert_eq!(announcement.due_frame(mac, now), (None, false));
            gaps.push((announcement.due() - now).as_millis());
            now = announcement.due();
        }
        assert_eq!(gaps, [50, 150, 250, 350]);
    }

    #[test]
    fn the_frame_is_a_reverse_arp_request() {
        let mac = [2, 3, 4, 5, 6, 7];
        let frame = frame(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
        assert_eq!((&frame[28..32], &frame[38..]), (&[0; 4][..], &[0; 22][..]));
    }
}
