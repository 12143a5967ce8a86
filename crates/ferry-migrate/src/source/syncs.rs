//! What the guest wrote to its disks is brought to the disk beside the rounds, so that little is left for the pause.
//!
//! Shared storage needs it, for the target reads there what the source wrote; and of a disk that is copied an error that
//! nobody has met yet is met while the guest can still be told. A page cache can hold gigabytes: so threads of their own
//! wait for the disk, and the pause waits for them only so long. A thread that the disk holds up ends with its call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use ferry_protocol::Timeouts;

use crate::{DiskImage, MachineError};

/// A pause may wait so long for a disk if less is not asked for: no disk answers faster whatever it is given.
const LEAST_LIMIT: Duration = Duration::from_millis(250);

/// A pause waits this many times the limit for a disk at most: what is left was to take no longer than the limit, and a
/// disk that takes far longer was not what was seen before the pause.
const TIMES_THE_LIMIT: u32 = 4;

/// The images of the guest's disks on their way to the disk.
#[derive(Debug)]
pub(super) struct Syncs {
    images: Vec<Arc<DiskImage>>,
    /// How long a pause is to wait for them.
    limit: Duration,
    began: Instant,
    /// Threads whose word is to come.
    left: usize,
    failure: Option<MachineError>,
    sender: Sender<Result<(), MachineError>>,
    answers: Receiver<Result<(), MachineError>>,
}

/// How far they are.
#[derive(Debug)]
pub(super) enum Standing {
    /// The disk works.
    Busy,
    /// All that was written when it began is there.
    Done {
        /// It began no longer ago than a pause may wait: so what was written since will not take longer either.
        is_fresh: bool,
    },
    /// An image cannot be brought to the disk.
    Failed(MachineError),
}

impl Syncs {
    /// Those of a guest whose pause is to last so long at most.
    pub(super) fn new(images: Vec<Arc<DiskImage>>, downtime_limit: Duration) -> Self {
        let images = images.into_iter().filter(|image| !image.is_read_only()).collect();
        let (sender, answers) = unbounded();
        let limit = downtime_limit.max(LEAST_LIMIT);
        Self { images, limit, began: Instant::now(), left: 0, failure: None, sender, answers }
    }

    /// Whether there is nothing to bring anywhere.
    pub(super) fn are_none(&self) -> bool {
        self.images.is_empty()
    }

    /// Begins, unless it is under way. What is on the disk costs nothing.
    pub(super) fn begin(&mut self) {
        if self.left > 0 {
            return;
        }
        self.began = Instant::now();
        for image in self.images.iter().filter(|image| !image.is_settled()) {
            let (image, sender) = (Arc::clone(image), self.sender.clone());
            let spawned = std::thread::Builder::new().name("ferry-sync".into()).spawn(move || {
                // Nobody listens any more: then nobody waits for it either.
                let _ended = sender.send(bring(&image));
            });
            match spawned {
                Ok(_) => self.left += 1,
                Err(error) => {
                    self.failure = Some(MachineError::with_source(
                        "no thread can be had to bring the guest's disks to the disk",
                        error,
                    ));
                }
            }
        }
    }

    /// Since when it is under way.
    pub(super) fn for_how_long(&self) -> Duration {
        self.began.elapsed()
    }

    /// What wakes who waits for it; then [`heard`](Self::heard).
    pub(super) fn answers(&self) -> &Receiver<Result<(), MachineError>> {
        &self.answers
    }

    /// Takes the word of a thread.
    pub(super) fn heard(&mut self, answer: Result<(), MachineError>) {
        self.left = self.left.saturating_sub(1);
        if let Err(error) = answer {
            self.failure.get_or_insert(error);
        }
    }

    /// How far they are. A failure is said once.
    pub(super) fn standing(&mut self) -> Standing {
        while let Ok(answer) = self.answers.try_recv() {
            self.heard(answer);
        }
        match self.failure.take() {
            Some(error) => Standing::Failed(error),
            None if self.left > 0 => Standing::Busy,
            None => Standing::Done { is_fresh: self.for_how_long() <= self.limit },
        }
    }

    /// How long a pause waits for them before the guest goes on instead.
    pub(super) fn longest_wait(&self, timeouts: &Timeouts) -> Duration {
        // The target hears nothing meanwhile.
        timeouts.paused.min(timeouts.silence / 2).min(self.limit.saturating_mul(TIMES_THE_LIMIT))
    }

    /// Of a paused guest: waits until everything is on the disk, at most so long.
    pub(super) fn finish(&mut self, at_most: Duration) -> Result<(), MachineError> {
        let until = Instant::now() + at_most;
        // What began before the pause may have left something out.
        for _ in 0..2 {
            self.begin();
            while self.left > 0 {
                let Ok(answer) = self.answers.recv_deadline(until) else {
                    return Err(MachineError::new(format!(
                        "what the guest wrote to its disks was not on the disk within {at_most:?} of the pause: its \
                         storage is too slow for it just now; try when the guest writes less"
                    )));
                };
                self.heard(answer);
            }
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
        }
        Ok(())
    }
}

fn bring(image: &DiskImage) -> Result<(), MachineError> {
    image.sync().map_err(|error| {
        let path = image.path().display();
        MachineError::with_source(
            format!(
                "the disk image {path} cannot be brought to the disk (the guest stays here, and its next flush fails)"
            ),
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Barrier;

    use super::*;

    const BOUND: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn image() -> (tempfile::NamedTempFile, Arc<DiskImage>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let image = DiskImage::open(0, file.path(), false).unwrap();
        (file, image)
    }

    /// Calls `act` while the disk takes its time with the image.
    fn while_busy(image: &DiskImage, act: impl FnOnce()) {
        let (begins, ends) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                image.sync_by(|_| {
                    begins.wait();
                    ends.wait();
                    Ok(())
                })
            });
            begins.wait();
            act();
            ends.wait();
        });
    }

    #[test]
    fn a_disk_that_takes_long_bounds_the_pause_and_not_the_other_way_round() {
        let (_file, image) = image();
        let mut syncs = Syncs::new(vec![Arc::clone(&image)], BOUND);
        while_busy(&image, || {
            let began = Instant::now();
            let error = syncs.finish(BOUND).unwrap_err().to_string();
            assert!(began.elapsed() < PATIENCE && error.contains("not on the disk within 100ms"), "{error}");
            assert!(matches!(syncs.standing(), Standing::Busy));
        });
        syncs.finish(PATIENCE).unwrap();
        assert!(matches!(syncs.standing(), Standing::Done { .. }));
    }

    #[test]
    fn the_wait_in_the_pause_keeps_to_the_downtime_limit_and_to_every_timeout() {
        let waits = |limit: u64, timeouts: &Timeouts| {
            Syncs::new(Vec::new(), Duration::from_millis(limit)).longest_wait(timeouts).as_millis()
        };
        let usual = Timeouts::default();
        assert_eq!(
            [30, 300, 1000, 60_000, u64::MAX].map(|limit| waits(limit, &usual)),
            [1000, 1200, 4000, 5000, 5000]
        );
        assert_eq!(waits(300, &Timeouts { paused: BOUND, ..usual.clone() }), BOUND.as_millis());
        assert_eq!(waits(300, &Timeouts { silence: 2 * BOUND, ..usual }), BOUND.as_millis());
    }

    #[test]
    fn what_was_written_after_it_began_is_brought_as_well() {
        let (_file, image) = image();
        let mut syncs = Syncs::new(vec![Arc::clone(&image)], BOUND);
        while_busy(&image, || {
            syncs.begin();
            image.wrote(0, 512);
        });
        syncs.finish(PATIENCE).unwrap();
        assert!(image.is_settled());
        syncs.begin();
        assert!(matches!(syncs.standing(), Standing::Done { is_fresh: true }), "and costs nothing then");
    }

    #[test]
    fn an_error_that_anybody_met_ends_it_until_the_guest_is_told() {
        let (_file, image) = image();
        let mut syncs = Syncs::new(vec![Arc::clone(&image)], BOUND);
        image.sync_by(|_| Err(io::Error::from_raw_os_error(5))).unwrap_err();
        for _ in 0..2 {
            let error = crate::sentence(&syncs.finish(PATIENCE).unwrap_err());
            assert!(error.contains("cannot be brought to the disk"), "{error}");
            assert!(error.ends_with("Input/output error (os error 5)"), "{error}");
        }
        assert!(image.take_failure().is_some());
        syncs.finish(PATIENCE).unwrap();
    }
}
