//! Where a kernel of arm64 and what it is told lie in guest memory.
//!
//! From where memory begins, in this order: the kernel at its offset from there, the device tree at the next 2 MiB, the
//! initramfs 2 MiB after it. So all lie close together, as the kernel wants it (a window of 32 GiB), and the device tree
//! crosses no 2 MiB.

use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::PE;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Format, Initramfs, LinuxError, Source, Surroundings, align_up, write};
use crate::boot::RAM_START;

mod device_tree;
mod registers;

pub(crate) use registers::{name_of, start_at};

/// What the kernel and the device tree begin at multiples of; the device tree is at most so long.
const BLOCK: u64 = 2 << 20;
const PAGE: u64 = 0x1000;

/// Where the kernel lies in its block if it does not say how much memory it takes (before Linux 3.17).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// Where a kernel begins, and where its device tree lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    kernel: u64,
    device_tree: u64,
}

/// Loads a kernel with all that it is told.
pub(super) fn load(
    mut kernel: Source,
    initramfs: Option<Source>,
    command_line: &str,
    around: &Surroundings<'_>,
) -> Result<Entry, LinuxError> {
    let format = kernel.format()?;
    let (text_offset, bytes) = match format {
        Format::Arm64 { text_offset, image_size } if image_size > 0 => (text_offset, image_size),
        _ => (OLD_TEXT_OFFSET, 0),
    };
    let end = RAM_START.saturating_add(text_offset).saturating_add(bytes.max(kernel.bytes));
    let device_tree = align_up(end, BLOCK);
    let start = device_tree.saturating_add(BLOCK);
    let initramfs_bytes = initramfs.as_ref().map_or(0, |source| source.bytes);
    let needed = align_up(start.saturating_add(initramfs_bytes), PAGE) - RAM_START;
    let available = around.memory.iter().next().map_or(0, GuestMemoryRegion::len);
    if needed > available {
        return Err(LinuxError::TooLarge { needed, available });
    }
    let loaded = PE::load(around.memory, Some(GuestAddress(RAM_START)), &mut kernel.file, None)
        .map_err(|source| kernel.unloadable(source))?;
    if loaded.kernel_end > end {
        return Err(LinuxError::Changed { what: kernel.what, path: kernel.path });
    }
    let placed = initramfs.map(|mut source| {
        source.put(around.memory, start)?;
        Ok::<_, LinuxError>(Initramfs { start, bytes: source.bytes })
    });
    let tree = device_tree::blob(command_line, placed.transpose()?, around)?;
    if tree.len() as u64 > BLOCK {
        return Err(LinuxError::Tables(format!("the device tree has {} bytes", tree.len())));
    }
    write(around.memory, device_tree, &tree)?;
    Ok(Entry { kernel: loaded.kernel_load.0, device_tree })
}

#[cfg(test)]
mod tests {
    use ferry_protocol::RegionSpan;
    use vm_memory::Bytes;

    use super::super::error::{INITRAMFS, KERNEL};
    use super::*;

    /// An `Image` of 4 KiB, which takes so much memory.
    fn image(image_size: u64) -> Vec<u8> {
        let mut file = vec![0xcc; 4096];
        file[8..16].copy_from_slice(&0_u64.to_le_bytes());
        file[16..24].copy_from_slice(&image_size.to_le_bytes());
        file[56..60].copy_from_slice(b"ARM\x64");
        file
    }

    fn load_into(memory_bytes: u64, kernel: &[u8]) -> Result<(Entry, [u8; 4]), LinuxError> {
        let folder = tempfile::tempdir().unwrap();
        let open = |name, bytes, what| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            Source::open(&folder.path().join(name), what).unwrap()
        };
        let (kernel, initramfs) = (open("k", kernel, KERNEL), open("i", &[7; 5000], INITRAMFS));
        let span = RegionSpan { start: RAM_START, length: memory_bytes };
        let memory = ferry_kvm::allocate(&[span]).unwrap();
        let around = Surroundings { memory: &memory, devices: 1, cpus: &[0] };
        let entry = load(kernel, Some(initramfs), "", &around)?;
        let mut first = [0; 4];
        memory.read_slice(&mut first, GuestAddress(entry.device_tree + BLOCK)).unwrap();
        Ok((entry, first))
    }

    #[test]
    fn kernel_device_tree_and_initramfs_lie_behind_each_other() {
        let (entry, initramfs) = load_into(32 << 20, &image(3 << 20)).unwrap();
        assert_eq!(entry, Entry { kernel: RAM_START, device_tree: RAM_START + (4 << 20) });
        assert_eq!(initramfs, [7; 4]);
        // One of old kernels, which does not say what it takes.
        let (entry, _) = load_into(32 << 20, &image(0)).unwrap();
        assert_eq!(entry, Entry { kernel: RAM_START + 0x8_0000, device_tree: RAM_START + (2 << 20) });
        let error = load_into(6 << 20, &image(3 << 20)).unwrap_err();
        let needed = (6 << 20) + 8192;
        assert!(matches!(error, LinuxError::TooLarge { needed: n, .. } if n == needed), "{error}");
        assert!(load_into(32 << 20, &image(u64::MAX)).is_err());
        for text_offset in [64 << 20, u64::MAX] {
            let mut far = image(1 << 20);
            far[8..16].copy_from_slice(&u64::to_le_bytes(text_offset));
            let error = load_into(32 << 20, &far).unwrap_err();
            assert!(matches!(error, LinuxError::TooLarge { .. }), "{error}");
        }
    }
}
