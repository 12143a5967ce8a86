//! A bzImage as small as one can be: the fields of its setup header that a loader reads, and where its kernel begins in 64-bit
//! mode this program. The tests of `ferry` and the seeds of the fuzz targets have it from here, too.
//!
//! Facts: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit Boot Protocol".

/// The offset of that beginning: one sector of setup behind the first, and 0x200 bytes.
const ENTRY: usize = 1024 + 0x200;

pub(crate) fn bzimage(program: &[u8]) -> Vec<u8> {
    let mut file = vec![0; ENTRY];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x202, b"HdrS\x0f\x02"),
        (0x211, &[1]),
        (0x214, &0x10_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 21, 1, 0]),
        (0x238, &2047_u32.to_le_bytes()),
    ] {
        set(&mut file, at, bytes);
    }
    file.extend(program);
    file
}

/// Puts these bytes into a field.
pub(crate) fn set(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = file.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}
