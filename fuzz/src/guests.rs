//! Bodies of the configurations that cross with a guest, and of the files that it may run.

use ferry_sim::SimConfig;
use ferry_vmm::{FLAT_ADDRESS, GuestConfig, Image, ImageError};

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

/// A file to run, ELF or flat. What is taken lies above the boot's memory, and a guest without any has no
/// room.
pub fn image(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    assert!(image.entry() >= FLAT_ADDRESS);
    assert!(matches!(image.check_fits(FLAT_ADDRESS), Err(ImageError::DoesNotFit { .. })));
    assert_eq!(image.check_fits(u64::MAX), Ok(()));
    assert_eq!(Image::parse(bytes), Ok(image));
}
