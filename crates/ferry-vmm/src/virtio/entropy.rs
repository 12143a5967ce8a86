//! The source of random bytes: the host kernel's.
//!
//! Facts: virtio 1.2, 5.4; `/dev/urandom`: random(4).

use std::fs::File;
use std::io::{self, Read};

use ferry_migrate::MachineError;
use ferry_state::device::{VirtioEntropy, VirtioTransport};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::chain::Malformed;
use super::device::Backend;
use super::turn::{Answer, Turn};

/// Where the bytes come from.
const SOURCE: &str = "/dev/urandom";

/// The most bytes for one request; the driver asks again.
const BYTES_MAX: usize = 4096;

/// A source of random bytes.
#[derive(Debug)]
pub(super) struct Entropy(File);

impl Entropy {
    /// Opens the host's.
    pub(super) fn open() -> io::Result<Self> {
        File::open(SOURCE).map(Self)
    }
}

impl Backend for Entropy {
    type State = VirtioEntropy;
    const NAME: &'static str = "virtio-entropy";
    const ID: u32 = VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[64];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<(), Malformed> {
        let source = &mut self.0;
        let answered = turn.answer(0, usize::MAX, |device, chain| {
            let mut bytes = [0; BYTES_MAX];
            let wanted =
                usize::try_from(chain.writable_bytes()).map_or(BYTES_MAX, |room| room.min(BYTES_MAX));
            // Never fails and never ends; were it so, the guest would get fewer bytes.
            let had = bytes.get_mut(..wanted).map_or(Ok(0), |room| source.read(room)).unwrap_or(0);
            let written = chain.write(device.memory, 0, bytes.get(..had).unwrap_or_default())?;
            Ok(Answer::Done(u32::try_from(written).unwrap_or(0)))
        });
        answered.map(drop)
    }

    fn save(&self, transport: VirtioTransport) -> VirtioEntropy {
        VirtioEntropy { transport }
    }

    fn restore(&mut self, state: VirtioEntropy) -> Result<VirtioTransport, MachineError> {
        Ok(state.transport)
    }
}
