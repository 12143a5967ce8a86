//! A guest in the simulated machine, in the words of this crate.

use std::sync::Arc;
use std::time::Duration;

use ferry_migrate::RunWatch;
use ferry_sim::{SimConfig, SimMachine, SimOptions, Workload};
use ferry_state::GuestTime;

use crate::{CheckReport, Guest, GuestConfig, GuestReport, Payload, VmmError};

/// Makes a guest that is born here.
pub fn create(
    config: &GuestConfig,
    seed: u64,
    watch: Option<Arc<dyn RunWatch>>,
) -> Result<SimMachine, VmmError> {
    config.validate()?;
    if config.cpus != SimConfig::VCPUS {
        return Err(VmmError::OneSimulated { cpus: config.cpus });
    }
    if config.low_bytes.is_some() {
        return Err(VmmError::NotSplit);
    }
    let workload = match config.payload {
        Payload::Idle => Workload::Idle { patterned_bytes: config.working_set_bytes() },
        Payload::Churn { rate_bytes_per_second, working_set_bytes } => {
            Workload::Churn { working_set_bytes, rate_bytes_per_second }
        }
        other => return Err(VmmError::NotSimulated { payload: other.name() }),
    };
    let config = SimConfig { seed, memory_bytes: config.memory_bytes, workload };
    Ok(SimMachine::born(config, SimOptions { watch, ..SimOptions::default() })?)
}

impl Guest for SimMachine {
    fn report(&self) -> GuestReport {
        let report = SimMachine::report(self);
        GuestReport {
            payload: report.payload.to_owned(),
            progress: report.progress,
            pages_checked: report.pages_checked,
            faults: report.faults,
            first_fault: report.first_fault.map(|fault| fault.to_string()),
            stopped: report.stopped,
            ..GuestReport::default()
        }
    }

    fn set_guest_time(&mut self, _: GuestTime) {}

    fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError> {
        let verified = SimMachine::verify(self, timeout)?;
        Ok(CheckReport { pages: verified.pages, faults: verified.faults })
    }
}
