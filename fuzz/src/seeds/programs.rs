//! Programs and kernels that a guest may begin with.

#[path = "../../../crates/ferry-vmm/tests/support/bzimage.rs"]
mod bzimage;

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

/// A bzImage with a kernel of one HLT, and the fields that say where that wants to lie and how much it needs.
fn bzimage() -> Vec<u8> {
    let mut file = bzimage::bzimage(&[0xf4]);
    bzimage::set(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
    bzimage::set(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
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
