//! Bodies of the configurations that cross with a guest.

use ferry_sim::SimConfig;
use ferry_vmm::GuestConfig;

/// A configuration of the reference VMM: what is read is written back as the same bytes.
pub fn vmm_config(bytes: &[u8]) {
    if let Ok(config) = GuestConfig::from_bytes(bytes) {
        assert_eq!(config.to_bytes(), bytes, "a configuration has one form");
    }
}

/// A configuration of the simulated machine: what is read survives being written and read again.
pub fn sim_config(bytes: &[u8]) {
    if let Ok(config) = SimConfig::from_bytes(bytes) {
        let again = SimConfig::from_bytes(&config.to_bytes());
        assert!(again.is_ok_and(|again| again == config), "a configuration comes back");
    }
}
