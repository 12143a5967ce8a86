//! Bodies of the configurations that cross with a guest, and of the files that it may run.

use std::io::Write;

use ferry_sim::SimConfig;
use ferry_vmm::virtio::Trial;
use ferry_vmm::{FLAT_ADDRESS, Image, ImageError, Linux, MachineConfig};

/// A configuration of the reference VMM: what is read is written back as the same bytes.
pub fn vmm_config(bytes: &[u8]) {
    if let Ok(config) = MachineConfig::from_bytes(bytes) {
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

/// A file to boot, which is its own initramfs as well: in a guest of 32 MiB it can be had or has a sentence.
pub fn kernel(bytes: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(bytes).is_err() {
        return;
    }
    let path = file.path().display().to_string();
    let linux = Linux { kernel: path.clone(), initramfs: Some(path), command_line: "quiet".to_owned() };
    if let Err(error) = ferry_vmm::try_kernel(&linux, 32 << 20) {
        assert!(!error.to_string().is_empty());
    }
}

/// A driver of a virtio block device that writes registers and queues as it likes, while the device is moved. What the
/// device writes to guest memory is noted, and its interrupt's line is what its registers say.
pub fn virtio_queue(bytes: &[u8]) {
    // Where descriptors or memory cannot be had nothing is tried.
    if let Ok(mut trial) = Trial::new() {
        assert_eq!(trial.play(bytes), Ok(()));
    }
}
