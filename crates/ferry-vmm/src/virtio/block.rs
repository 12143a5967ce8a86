//! The block device: a raw image ([`DiskImage`], whose lock and copy are the engine's affair).
//!
//! A write is with the host when the guest sees it done, and on the disk when a flush that came after it is
//! done, or at once for a driver that knows no flush. The thread brings the image to the disk between two turns
//! ([`Errand`]), and nobody waits for it with the device. Errors of the image are the guest's, as a
//! disk's are: the request fails, and nothing else; also an error that somebody else met since the guest's last flush.
//!
//! Facts: virtio 1.2, 5.2.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use ferry_migrate::{DiskImage, MachineError, SECTOR_BYTES};
use ferry_state::device::{VirtioBlock, VirtioTransport};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::chain::{Chain, Malformed};
use super::complaints::Complaints;
use super::device::{Backend, Errand};
use super::memory::DeviceMemory;
use super::turn::{Answer, Shared, Turn};

/// Entries of the queue.
const QUEUE_ENTRIES: u16 = 256;

/// The most buffers of a request: the queue's entries without the request's head and its status.
const SEGMENTS_MAX: u32 = 254;

/// Bytes of a request's head: type, reserved, sector.
const HEAD_BYTES: usize = 16;

/// Bytes that are on their way between image and guest at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A block device.
#[derive(Debug)]
pub(super) struct Block {
    image: Arc<DiskImage>,
    /// Its name among the guest's disks.
    id: String,
    buffer: Vec<u8>,
    sync: Bringing,
    complaints: Complaints,
}

/// How far the image is on its way to the disk for the request at hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Bringing {
    /// No request asked for it.
    #[default]
    Unasked,
    /// The next request does.
    Asked,
    /// Everything is there that was written before the next request, or the image knows what failed.
    Done,
}

/// How a request ends.
#[derive(Debug)]
enum Failure {
    /// As a disk fails: the guest is told.
    Status(u32),
    /// Not now: the request stays the guest's.
    Later,
    /// As no driver does.
    Malformed(Malformed),
}

impl From<Malformed> for Failure {
    fn from(problem: Malformed) -> Self {
        Self::Malformed(problem)
    }
}

impl Block {
    /// The disk in this place.
    pub(super) fn new(image: Arc<DiskImage>, place: u32) -> Self {
        let id = format!("ferry-{place}");
        let (buffer, sync) = (vec![0; BUFFER_BYTES], Bringing::default());
        Self { image, id, buffer, sync, complaints: Complaints::default() }
    }

    /// Does a request. `is_through` says that the driver knows no flush, so that each write is one.
    fn request(&mut self, device: &Shared<'_>, chain: &Chain, is_through: bool) -> Result<Answer, Malformed> {
        let memory = device.memory;
        let wrong = |problem| Malformed::Chain { head: chain.head(), problem };
        let mut head = [0; HEAD_BYTES];
        if chain.read(memory, 0, &mut head)? != HEAD_BYTES {
            return Err(wrong("is shorter than a request's head"));
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = head;
        // The last byte is the status.
        let Some(room) = chain.writable_bytes().checked_sub(1) else {
            return Err(wrong("has no place for the request's status"));
        };
        let sector = u64::from_le_bytes(sector);
        let is_synced = std::mem::take(&mut self.sync) == Bringing::Done;
        let done = match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_IN => self.read(device, chain, sector, room),
            // It was written before it was brought to the disk.
            VIRTIO_BLK_T_OUT if is_through && is_synced => self.synchronise(is_synced),
            VIRTIO_BLK_T_OUT => self.write(device, chain, sector, is_through),
            VIRTIO_BLK_T_FLUSH => self.synchronise(is_synced),
            VIRTIO_BLK_T_GET_ID => self.tell_id(memory, chain, room),
            _ => Err(Failure::Status(VIRTIO_BLK_S_UNSUPP)),
        };
        let (written, status) = match done {
            Ok(written) => (written, VIRTIO_BLK_S_OK),
            Err(Failure::Status(status)) => (0, status),
            Err(Failure::Later) => return Ok(Answer::Later),
            Err(Failure::Malformed(problem)) => return Err(problem),
        };
        chain.write(memory, room, &status.to_le_bytes()[..1])?;
        // What is told is written without a gap: the status only with all that lies before it.
        let told = if written == room { written.saturating_add(1) } else { written };
        Ok(Answer::Done(u32::try_from(told).unwrap_or(u32::MAX)))
    }

    fn read(&mut self, device: &Shared<'_>, chain: &Chain, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let start = self.extent(sector, bytes)?;
        let mut done = 0;
        while done < bytes {
            go_on(device, done)?;
            let part = part_of(&mut self.buffer, bytes - done);
            let read = self.image.file().read_exact_at(part, start + done);
            let length = part.len() as u64;
            if read.is_ok() {
                chain.write(device.memory, done, part)?;
            }
            self.or_complain("read", start + done, read)?;
            done += length;
        }
        Ok(done)
    }

    fn write(
        &mut self,
        device: &Shared<'_>,
        chain: &Chain,
        sector: u64,
        is_through: bool,
    ) -> Result<u64, Failure> {
        let bytes = chain.readable_bytes().saturating_sub(HEAD_BYTES as u64);
        let start = self.extent(sector, bytes)?;
        if self.image.is_read_only() {
            return Err(Failure::Status(VIRTIO_BLK_S_IOERR));
        }
        let mut done = 0;
        while done < bytes {
            go_on(device, done)?;
            let part = part_of(&mut self.buffer, bytes - done);
            chain.read(device.memory, HEAD_BYTES as u64 + done, part)?;
            let written = self.image.file().write_all_at(part, start + done);
            let length = part.len() as u64;
            // Also what failed: a part of it may be there.
            self.image.wrote(start + done, length);
            self.or_complain("written", start + done, written)?;
            done += length;
        }
        if is_through { self.synchronise(false) } else { Ok(0) }
    }

    /// Answers what is to be answered once the image is on the disk: with what failed on the way, whoever met it.
    fn synchronise(&mut self, is_synced: bool) -> Result<u64, Failure> {
        if !is_synced {
            self.sync = Bringing::Asked;
            return Err(Failure::Later);
        }
        let done = self.image.take_failure().map_or(Ok(()), Err);
        self.or_complain("brought to the disk", 0, done).map(|()| 0)
    }

    fn tell_id(&self, memory: &DeviceMemory, chain: &Chain, room: u64) -> Result<u64, Failure> {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(self.id.bytes()) {
            *to = from;
        }
        let length = usize::try_from(room).map_or(id.len(), |room| room.min(id.len()));
        chain.write(memory, 0, id.get(..length).unwrap_or_default())?;
        Ok(length as u64)
    }

    /// Where so many bytes from this sector on begin, if they are whole sectors of the disk.
    fn extent(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let fits = sector.checked_mul(SECTOR_BYTES).filter(|start| {
            bytes.is_multiple_of(SECTOR_BYTES)
                && start.checked_add(bytes).is_some_and(|end| end <= self.image.bytes())
        });
        fits.ok_or(Failure::Status(VIRTIO_BLK_S_IOERR))
    }

    /// An error of the image is the guest's; the operator is told now and then.
    fn or_complain(&mut self, what: &str, offset: u64, done: io::Result<()>) -> Result<(), Failure> {
        done.map_err(|error| {
            if let Some(unsaid) = self.complaints.may_say(Instant::now()) {
                let path = self.image.path().display();
                tracing::warn!(%path, offset, unsaid, %error, "a guest's disk image cannot be {what}");
            }
            Failure::Status(VIRTIO_BLK_S_IOERR)
        })
    }
}

/// A request can have 4 GiB: whoever waits for the device does not wait for all of it.
fn go_on(device: &Shared<'_>, done: u64) -> Result<(), Failure> {
    if done > 0 && device.must_end() { Err(Failure::Later) } else { Ok(()) }
}

/// The buffer, no longer than what is left.
fn part_of(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    buffer.get_mut(..length).unwrap_or_default()
}

impl Backend for Block {
    type State = VirtioBlock;
    const NAME: &'static str = "virtio-block";
    const ID: u32 = VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[QUEUE_ENTRIES];

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | u64::from(self.image.is_read_only()) << VIRTIO_BLK_F_RO
    }

    /// `struct virtio_blk_config` up to `blk_size`: capacity, `size_max` and geometry (which are not offered), `seg_max`.
    fn config(&self) -> Vec<u8> {
        let mut config = (self.image.bytes() / SECTOR_BYTES).to_le_bytes().to_vec();
        config.extend([0; 4]);
        config.extend(SEGMENTS_MAX.to_le_bytes());
        config.extend([0; 4]);
        config.extend(512_u32.to_le_bytes());
        config
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<(), Malformed> {
        let is_through = !turn.has(VIRTIO_BLK_F_FLUSH);
        turn.answer(0, usize::MAX, |device, chain| self.request(device, chain, is_through)).map(drop)
    }

    fn reset(&mut self) {
        self.sync = Bringing::Unasked;
    }

    fn errand(&mut self) -> Option<Errand> {
        let image = Arc::clone(&self.image);
        // An error stays with the image until the guest is told.
        (self.sync == Bringing::Asked).then(|| Box::new(move || drop(image.sync())) as Errand)
    }

    fn errand_done(&mut self) {
        self.sync = Bringing::Done;
    }

    fn save(&self, transport: VirtioTransport) -> VirtioBlock {
        VirtioBlock { transport, capacity_sectors: self.image.bytes() / SECTOR_BYTES }
    }

    fn restore(&mut self, state: VirtioBlock) -> Result<VirtioTransport, MachineError> {
        let (own, wanted) = (self.image.bytes() / SECTOR_BYTES, state.capacity_sectors);
        if own != wanted {
            return Err(MachineError::new(format!(
                "the guest's disk has {wanted} sectors of 512 bytes, the image {} has {own}",
                self.image.path().display()
            )));
        }
        Ok(state.transport)
    }
}
