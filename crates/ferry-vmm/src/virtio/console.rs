//! The console: one port, whose output goes to files or nowhere, and whose input comes from the caller.
//!
//! As with the serial port output that nobody reads holds nothing up ([`Output`]), and input that
//! the guest has no room for stays with the caller, who gives it to the console of the host where the guest then runs.
//!
//! Facts: virtio 1.2, 5.3.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use ferry_migrate::MachineError;
use ferry_state::device::{VirtioConsole, VirtioTransport};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::chain::{Chain, Malformed};
use super::device::{Backend, Device};
use super::memory::DeviceMemory;
use super::turn::{Answer, Turn};
use crate::output::Output;

/// The queues.
const INPUT: usize = 0;
const OUTPUT: usize = 1;

/// Bytes that are on their way at once.
const BUFFER_BYTES: usize = 4096;

/// The most of one request that is written; drivers write a page at most, and a hostile one could write
/// 4 GiB.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// A console.
#[derive(Debug, Default)]
pub(super) struct Console {
    output: Output,
    /// Input of the turn at hand, and how much of it the guest has.
    input: Vec<u8>,
    taken: usize,
}

impl Console {
    fn write(&mut self, memory: &DeviceMemory, chain: &Chain) -> Result<(), Malformed> {
        let mut buffer = [0; BUFFER_BYTES];
        let mut done = 0;
        while done < REQUEST_BYTES_MAX {
            let bytes = chain.read(memory, done, &mut buffer)?;
            let Some(part @ [_, ..]) = buffer.get(..bytes) else { return Ok(()) };
            done += bytes as u64;
            // It never fails.
            let _written = self.output.write_all(part);
        }
        Ok(())
    }
}

impl Backend for Console {
    type State = VirtioConsole;
    const NAME: &'static str = "virtio-console";
    const ID: u32 = VIRTIO_ID_CONSOLE;
    const QUEUES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<(), Malformed> {
        turn.answer(OUTPUT, usize::MAX, |device, chain| {
            self.write(device.memory, chain)?;
            Ok(Answer::Done(0))
        })?;
        while !turn.must_end()
            && let Some(rest @ [_, ..]) = self.input.get(self.taken..)
            && let Some(chain) = turn.next(INPUT)?
        {
            let written = chain.write(turn.memory(), 0, rest)?;
            self.taken += written;
            turn.complete(INPUT, &chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn save(&self, transport: VirtioTransport) -> VirtioConsole {
        VirtioConsole { transport }
    }

    fn restore(&mut self, state: VirtioConsole) -> Result<VirtioTransport, MachineError> {
        Ok(state.transport)
    }
}

/// A handle of a guest's virtio console; all clones are the same console.
#[derive(Clone)]
pub struct ConsolePort(Arc<Device<Console>>);

impl ConsolePort {
    pub(super) fn new(device: &Arc<Device<Console>>) -> Self {
        Self(Arc::clone(device))
    }

    /// Sends output to these files from now on. Of what nobody reads from a pipe the oldest is lost, beyond 1 MiB.
    pub fn write_to(&self, files: Vec<Arc<File>>) {
        self.0.with_backend(|console| console.output = Output::new(files));
    }

    /// The guest ends: gives who reads a moment for its last words.
    pub(crate) fn finish(&self) {
        self.0.with_backend(|console| console.output.clone()).finish();
    }

    /// Gives input to the guest; the number of bytes taken, from the front. The rest does not fit yet,
    /// or the guest is not running here.
    pub fn send(&self, input: &[u8]) -> usize {
        let begin = |console: &mut Console| (console.input, console.taken) = (input.to_vec(), 0);
        let end = |console: &mut Console| {
            console.input.clear();
            std::mem::take(&mut console.taken)
        };
        self.0.turn_with(begin, end).unwrap_or(0)
    }
}

impl std::fmt::Debug for ConsolePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsolePort").finish_non_exhaustive()
    }
}
