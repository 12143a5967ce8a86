//! Devices behind memory: which device answers at which guest-physical address.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A device behind memory, as the vCPUs' threads reach it. Offsets are into its window.
pub(crate) trait MmioDevice: Send + Sync {
    /// A read by a vCPU of 1, 2, 4 or 8 bytes.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// A write by a vCPU of 1, 2, 4 or 8 bytes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The windows of a machine's devices.
#[derive(Default)]
pub(crate) struct MmioBus {
    windows: Vec<(Range<u64>, Arc<dyn MmioDevice>)>,
}

impl MmioBus {
    /// Adds a device; windows do not meet.
    pub(crate) fn add(&mut self, window: Range<u64>, device: Arc<dyn MmioDevice>) {
        self.windows.push((window, device));
    }

    /// A read; false if no device answers there.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let found = self.find(address, data.len());
        found.inspect(|(device, offset)| device.read(*offset, data)).is_some()
    }

    /// A write; false if no device answers there.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len());
        found.inspect(|(device, offset)| device.write(*offset, data)).is_some()
    }

    /// The device that has all these bytes, and where in its window they are.
    fn find(&self, address: u64, length: usize) -> Option<(&dyn MmioDevice, u64)> {
        let end = address.checked_add(length as u64)?;
        let (window, device) =
            self.windows.iter().find(|(window, _)| window.contains(&address) && end <= window.end)?;
        Some((device.as_ref(), address - window.start))
    }
}

impl fmt::Debug for MmioBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.windows.iter().map(|(window, _)| window)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Last(Mutex<Vec<(u64, Vec<u8>)>>);

    impl MmioDevice for Last {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_device_answers_in_its_window_and_nobody_outside() {
        let (mut bus, device) = (MmioBus::default(), Arc::new(Last::default()));
        bus.add(0x1000..0x1100, Arc::new(Last::default()));
        bus.add(0x2000..0x2100, Arc::clone(&device) as Arc<dyn MmioDevice>);
        let mut data = [0; 4];
        assert!(bus.read(0x1010, &mut data));
        assert_eq!(data, [0x10; 4]);
        assert!(bus.write(0x20fc, &[1, 2, 3, 4]));
        assert_eq!(*device.0.lock().unwrap(), [(0xfc, vec![1, 2, 3, 4])]);
        for outside in [0xfff, 0x1100, 0x10fd, 0x1ffd, 0x20fe, u64::MAX] {
            assert!(!bus.read(outside, &mut data) && !bus.write(outside, &data), "{outside:#x}");
        }
    }
}
