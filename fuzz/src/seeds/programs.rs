//! Programs and kernels that a guest may begin with.

use super::{Seed, seed};

/// Images of both forms, and a kernel of each.
pub(super) fn all() -> Vec<Seed> {
    vec![
        seed("image", "flat", &[0xf4, 0xeb, 0xfd]),
        seed("image", "elf", &elf()),
        seed("kernel", "bzimage", &bzimage()),
        seed("kernel", "vmlinux", &vmlinux()),
        seed("kernel", "arm64", &arm64_image()),
    ]
}

/// An ELF64 executable of one segment: three bytes at 4 MiB, which are its entry.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    let numbers = |file: &mut Vec<u8>, numbers: &[u64]| {
        file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    };
    numbers(&mut file, &[0x40_0000, 64, 0]); // entry, program headers, sections
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // a loadable segment
    numbers(&mut file, &[120, 0x40_0000, 0x40_0000, 3, 4096, 4096]);
    file.extend([0xf4, 0xeb, 0xfd]);
    file
}

/// A bzImage: the fields of its setup header that a loader reads, and a kernel of one HLT.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x202, b"HdrS\x0f\x02"),
        (0x211, &[1]),
        (0x214, &0x10_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 21, 1, 0]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x10_0000_u32.to_le_bytes()),
    ] {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    file.push(0xf4);
    file
}

/// The same as [`elf`], with a note that has a PVH entry.
fn vmlinux() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let numbers = |file: &mut Vec<u8>, numbers: &[u64]| {
        file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    };
    numbers(&mut file, &[0x100_0000, 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    numbers(&mut file, &[176, 0x100_0000, 0x100_0000, 4, 4096, 4096]);
    file.extend([4, 0, 0, 0, 4, 0, 0, 0]); // a note
    numbers(&mut file, &[180, 0, 0, 20, 20, 4]);
    file.extend([0xf4, 0xeb, 0xfd, 0x90, 4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    file.extend(b"Xen\0");
    file.extend(0x100_0000_u32.to_le_bytes());
    file
}

/// An `Image` of arm64: its header, and B to itself.
fn arm64_image() -> Vec<u8> {
    let words = [0x1400_0010_u32, 0, 0, 0, 0x1000, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0x644d_5241, 0, 0x1400_0000];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
