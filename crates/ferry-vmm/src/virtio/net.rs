//! The network card: frames between the guest and a tap device, one at a time, without offloads.
//!
//! A frame is taken from the tap only when the guest has room for it, and given to the tap before its request is
//! done; so none is in the card when it is quiet. What does not fit, or what the tap does not take, is lost, as on any network.
//! When the tap itself is taken away (`ip link del`), the guest's link is down from then on, and up again where it has a tap.
//!
//! When the guest has come here ([`Backend::announce`]) switches learn where it is now: from reverse ARP requests
//! with the card's address ([`Announcement`]), and from the guest itself, whose driver is asked to say all its
//! addresses where it took `VIRTIO_NET_F_GUEST_ANNOUNCE`.
//!
//! Facts: virtio 1.2, 5.1.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ferry_migrate::MachineError;
use ferry_state::device::{VirtioNet, VirtioTransport};
use rustix::io::Errno;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_OK, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};

use super::announcement::Announcement;
use super::chain::{Chain, Malformed};
use super::complaints::Complaints;
use super::device::Backend;
use super::memory::DeviceMemory;
use super::turn::{Answer, Turn};

/// The queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// Requests of one queue before the other has its turn.
const BUDGET: usize = 64;

/// Bytes of `struct virtio_net_hdr_v1`, in front of every frame.
const HEADER_BYTES: usize = 12;

/// Where `num_buffers` is in it: of how many requests the frame's room is made, always one here.
const BUFFERS_OFFSET: usize = 10;

/// The shortest and the longest frame: an Ethernet header, and more than any tap gives.
const FRAME_BYTES_MIN: usize = 14;
const FRAME_BYTES_MAX: usize = 65_535 + 18;

/// Bits of `status`.
const LINK_UP: u16 = low_half(VIRTIO_NET_S_LINK_UP);
const ANNOUNCE: u16 = low_half(VIRTIO_NET_S_ANNOUNCE);

const fn low_half(bits: u32) -> u16 {
    let [low, high, ..] = bits.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// A network card.
#[derive(Debug)]
pub(super) struct Net {
    tap: File,
    /// The tap is no more.
    is_gone: bool,
    mac: [u8; 6],
    status: u16,
    /// A header and a frame.
    buffer: Vec<u8>,
    announcement: Option<Announcement>,
    /// The guest is to announce itself, and has not been asked yet.
    asks_guest: bool,
    complaints: Complaints,
}

impl Net {
    /// The card of this address on an open tap.
    pub(super) fn new(tap: OwnedFd, mac: [u8; 6]) -> Self {
        Self {
            tap: tap.into(),
            is_gone: false,
            mac,
            status: LINK_UP,
            buffer: vec![0; HEADER_BYTES + FRAME_BYTES_MAX],
            announcement: None,
            asks_guest: false,
            complaints: Complaints::default(),
        }
    }

    /// Gives a frame of the guest's to the tap.
    fn transmit(&mut self, memory: &DeviceMemory, chain: &Chain) -> Result<(), Malformed> {
        let length = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
        if !(HEADER_BYTES + FRAME_BYTES_MIN..=HEADER_BYTES + FRAME_BYTES_MAX).contains(&length) {
            return Ok(());
        }
        let Some(frame) = self.buffer.get_mut(..length - HEADER_BYTES) else { return Ok(()) };
        // No offload is offered, so the header says nothing.
        chain.read(memory, HEADER_BYTES as u64, frame)?;
        if self.is_gone {
            return Ok(());
        }
        let sent = self.tap.write(frame).map(drop);
        self.complain("taken by its tap device", sent);
        Ok(())
    }

    /// Gives frames of the tap to the guest. True if there may be more.
    fn receive(&mut self, turn: &mut Turn<'_>) -> Result<bool, Malformed> {
        for _ in 0..BUDGET {
            if self.is_gone || turn.must_end() {
                return Ok(false);
            }
            let Some(chain) = turn.next(RECEIVE)? else {
                if turn.wait_for_more(RECEIVE)? {
                    continue;
                }
                return Ok(false);
            };
            let Some(frame) = self.buffer.get_mut(HEADER_BYTES..) else { return Ok(false) };
            match self.tap.read(frame) {
                // The end of a file, which a tap is not.
                Ok(0) => {
                    turn.put_back(RECEIVE);
                    self.complain("had from its tap device", Err(Errno::NODEV.into()));
                }
                Ok(bytes) if (HEADER_BYTES + bytes) as u64 <= chain.writable_bytes() => {
                    self.deliver(turn, &chain, HEADER_BYTES + bytes)?;
                }
                Ok(_) => turn.put_back(RECEIVE),
                Err(error) if error.kind() == ErrorKind::Interrupted => turn.put_back(RECEIVE),
                Err(error) => {
                    turn.put_back(RECEIVE);
                    if error.kind() != ErrorKind::WouldBlock {
                        self.complain("had from its tap device", Err(error));
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn deliver(&mut self, turn: &mut Turn<'_>, chain: &Chain, bytes: usize) -> Result<(), Malformed> {
        let Some(packet) = self.buffer.get_mut(..bytes) else { return Ok(()) };
        packet.iter_mut().take(HEADER_BYTES).for_each(|byte| *byte = 0);
        if let Some(buffers) = packet.get_mut(BUFFERS_OFFSET) {
            *buffers = 1;
        }
        chain.write(turn.memory(), 0, packet)?;
        turn.complete(RECEIVE, chain, u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// Does what the driver orders.
    fn control(&mut self, memory: &DeviceMemory, chain: &Chain) -> Result<u32, Malformed> {
        let wrong = |problem| Malformed::Chain { head: chain.head(), problem };
        let mut order = [0; 2];
        if chain.read(memory, 0, &mut order)? != order.len() {
            return Err(wrong("is shorter than an order to the card"));
        }
        let Some(room) = chain.writable_bytes().checked_sub(1) else {
            return Err(wrong("has no place for the order's answer"));
        };
        let answer = if order.map(u32::from) == [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK] {
            self.status &= !ANNOUNCE;
            VIRTIO_NET_OK
        } else {
            VIRTIO_NET_ERR
        };
        let [answer, ..] = answer.to_le_bytes();
        chain.write(memory, room, &[answer])?;
        Ok(u32::from(room == 0))
    }

    /// What is due of the announcement.
    fn tell(&mut self, turn: &mut Turn<'_>) {
        if let Some(announcement) = self.announcement.as_mut().filter(|_| !self.is_gone) {
            let (frame, is_over) = announcement.due_frame(self.mac, Instant::now());
            if let Some(frame) = frame {
                let sent = self.tap.write(&frame).map(drop);
                self.complain("announced", sent);
            }
            if is_over {
                self.announcement = None;
            }
        }
        if std::mem::take(&mut self.asks_guest) && turn.has(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            self.status |= ANNOUNCE;
            turn.configure(self.config());
        }
        if self.status & LINK_UP != self.link() {
            self.status ^= LINK_UP;
            turn.configure(self.config());
        }
    }

    /// Whether frames can go anywhere.
    fn link(&self) -> u16 {
        if self.is_gone { 0 } else { LINK_UP }
    }

    /// The operator is told now and then; the guest sees a network that loses frames.
    fn complain(&mut self, what: &str, done: io::Result<()>) {
        let Err(error) = done else { return };
        if is_end(&error) {
            if !std::mem::replace(&mut self.is_gone, true) {
                let mac = self.mac;
                tracing::warn!(%error, "the tap device of the guest's network card {mac:02x?} is gone: the card's link is down until the guest moves");
            }
        } else if let Some(unsaid) = self.complaints.may_say(Instant::now()) {
            tracing::warn!(unsaid, %error, "a frame of a guest's network card cannot be {what}");
        }
    }
}

/// Whether there is no tap behind its descriptor any more (`tun_get` in the kernel's drivers/net/tun.c: `EBADFD`).
fn is_end(error: &io::Error) -> bool {
    let ends = [Errno::BADFD, Errno::BADF, Errno::NODEV, Errno::NXIO];
    Errno::from_io_error(error).is_some_and(|errno| ends.contains(&errno))
}

impl Backend for Net {
    type State = VirtioNet;
    const NAME: &'static str = "virtio-net";
    const ID: u32 = VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[256, 256, 64];

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE
    }

    /// `struct virtio_net_config` up to `status`.
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend(self.status.to_le_bytes());
        config
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<(), Malformed> {
        self.tell(turn);
        turn.answer(CONTROL, usize::MAX, |device, chain| {
            self.control(device.memory, chain).map(Answer::Done)
        })?;
        turn.note_config(self.config());
        loop {
            let sends = turn.answer(TRANSMIT, BUDGET, |device, chain| {
                self.transmit(device.memory, chain)?;
                Ok(Answer::Done(0))
            })?;
            let receives = self.receive(turn)?;
            // Between the frames, too: a busy network has no pause.
            self.tell(turn);
            if !(receives | sends) {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {
        self.status = self.link();
        self.asks_guest = false;
    }

    fn save(&self, transport: VirtioTransport) -> VirtioNet {
        VirtioNet { transport, mac: self.mac, status: self.status }
    }

    fn restore(&mut self, state: VirtioNet) -> Result<VirtioTransport, MachineError> {
        if state.mac != self.mac {
            let (theirs, own) = (state.mac, self.mac);
            return Err(MachineError::new(format!(
                "the guest's network card has the address {theirs:02x?}, this one {own:02x?}"
            )));
        }
        if state.status & !(LINK_UP | ANNOUNCE) != 0 {
            return Err(MachineError::new(format!("no network card has the status {:#x}", state.status)));
        }
        // As the guest knows it; if the link is another one here, it is told.
        self.status = state.status;
        Ok(state.transport)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn due(&self) -> Option<Instant> {
        self.announcement.as_ref().filter(|_| !self.is_gone).map(Announcement::due)
    }

    fn announce(&mut self) {
        self.announcement = Some(Announcement::new(Instant::now()));
        self.asks_guest = true;
    }
}
