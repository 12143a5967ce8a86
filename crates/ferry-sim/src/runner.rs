//! The thread that runs a core by real time.
//!
//! The thread owns the core and the guest's custody while the guest runs, and gives both back when
//! it stops; nobody else can touch the core meanwhile. Who wants something of the core asks the
//! thread, which answers between two bursts of steps. The thread waits on its orders with a timeout,
//! so it neither spins nor oversleeps an order.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_migrate::{Custody, RunWatch};

use crate::pace::Pace;
use crate::sim_core::SimCore;
use crate::walk::steps_per_second;

/// The most steps between two looks at the orders: a fraction of a millisecond of work.
const BURST_STEPS: u64 = 64;

/// How long an answer of the runner may take. It comes between two bursts; only a machine that hangs
/// takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the runner is asked to do between two bursts.
type Ask = Box<dyn FnOnce(&mut SimCore) + Send>;

/// A core on its way to its thread, with the right to run it.
pub(crate) struct Start {
    pub(crate) core: Box<SimCore>,
    pub(crate) custody: Custody,
    pub(crate) watch: Option<Arc<dyn RunWatch>>,
}

/// A core that stopped, with the right to run it again.
pub(crate) struct Stopped {
    pub(crate) core: Box<SimCore>,
    pub(crate) custody: Custody,
}

/// A thread that runs a core.
pub(crate) struct Runner {
    asks: Sender<Ask>,
    /// Always there until the runner is stopped.
    thread: Option<JoinHandle<Option<Stopped>>>,
}

/// The runner did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerError {
    #[error("the simulated machine's thread could not be started")]
    Spawn(#[source] std::io::Error),
    #[error("the simulated machine's thread is gone")]
    Gone,
    #[error("the simulated machine's thread did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
}

impl Runner {
    /// Runs the core on a thread of its own. On an error the guest does not run, and all comes back.
    pub(crate) fn start(start: Start) -> Result<Self, (Start, RunnerError)> {
        let (begin, beginning) = channel::<Start>();
        let (asks, orders) = channel();
        // The thread starts empty, so that nothing is lost with it if it does not start.
        let spawned = std::thread::Builder::new().name("ferry-sim".to_owned()).spawn(move || {
            let start = beginning.recv().ok()?;
            Some(run(start, &orders))
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(error) => return Err((start, RunnerError::Spawn(error))),
        };
        if let Some(watch) = &start.watch {
            watch.starts(&start.custody);
        }
        begin.send(start).map_err(|unsent| {
            if let Some(watch) = &unsent.0.watch {
                watch.stops(&unsent.0.custody);
            }
            (unsent.0, RunnerError::Gone)
        })?;
        Ok(Self { asks, thread: Some(thread) })
    }

    /// Lets the thread do this between two bursts, and waits for its answer.
    pub(crate) fn ask<T, F>(&self, question: F) -> Result<T, RunnerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut SimCore) -> T + Send + 'static,
    {
        let (answer, answered) = channel();
        let ask: Ask = Box::new(move |core| {
            // Who asked may have gone away meanwhile.
            drop(answer.send(question(core)));
        });
        self.asks.send(ask).map_err(|_| RunnerError::Gone)?;
        answered.recv_timeout(ANSWER_TIMEOUT).map_err(|error| match error {
            RecvTimeoutError::Timeout => RunnerError::Silent,
            RecvTimeoutError::Disconnected => RunnerError::Gone,
        })
    }

    /// Stops the guest after the burst under way. None if the thread panicked.
    pub(crate) fn stop(mut self) -> Option<Stopped> {
        self.end()
    }

    fn end(&mut self) -> Option<Stopped> {
        // The thread stops when nobody can ask it any more.
        let (nobody, _) = channel();
        drop(std::mem::replace(&mut self.asks, nobody));
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

/// Runs the core until nobody holds the other end of `orders`.
fn run(start: Start, orders: &Receiver<Ask>) -> Stopped {
    let Start { mut core, custody, watch } = start;
    let clock = Instant::now();
    let mut pace = Pace::new(steps_per_second(&core.config().workload), Duration::ZERO);
    loop {
        // A guest that ended only waits: to be asked, and to be paused.
        let rest = if core.ended().is_some() { ANSWER_TIMEOUT } else { burst(&mut core, &mut pace, &clock) };
        match orders.recv_timeout(rest) {
            Ok(ask) => ask(&mut core),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Some(watch) = watch {
        watch.stops(&custody);
    }
    Stopped { core, custody }
}

/// Does some of the steps that are due, and says how long nothing is.
fn burst(core: &mut SimCore, pace: &mut Pace, clock: &Instant) -> Duration {
    let filling = core.steps_to_fill();
    let due = if filling > 0 { filling } else { pace.due(clock.elapsed()) };
    let steps = due.min(BURST_STEPS);
    if let Err(error) = core.step(steps) {
        tracing::warn!(%error, "the simulated guest ended");
        return Duration::ZERO;
    }
    if filling > 0 {
        // The first writing of all pages is not paced: the guest boots. Its pace begins after it.
        *pace = Pace::new(steps_per_second(&core.config().workload), clock.elapsed());
        return Duration::ZERO;
    }
    pace.did(steps);
    if steps < due { Duration::ZERO } else { pace.rest(clock.elapsed()) }
}
