//! The flag for what a moved guest sees of the pause.

use clap::Args;
use ferry_vmm::GuestTime;

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TimeArgs {
    /// What the guest's clocks do about the pause: stops (they stand still, and its wall clock is behind afterwards)
    /// or catches-up (they go on by as long as it lasted, by the wall clocks of both hosts).
    #[arg(long, value_name = "stops|catches-up", default_value = "stops")]
    pub(crate) guest_time: GuestTime,
}
