//! What kind of kernel a file is, told by its first bytes.
//!
//! Facts: Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header": `HdrS` at 0x202), Documentation/arch/arm64/booting.rst
//! ("Call the kernel image": `ARM\x64` at 56), drivers/firmware/efi/libstub/zboot-header.S (`zimg` at 4); the System V
//! ABI (ELF header).

use std::fs::File;
use std::io::{self, Read, Seek};

use super::error::LinuxError;

/// As many bytes of a file as are looked at: the setup header of a bzImage ends before.
const HEAD_BYTES: u64 = 0x280;

/// `EM_X86_64` and `EM_AARCH64` of an ELF header.
const MACHINE_X86: u16 = 62;
const MACHINE_ARM64: u16 = 183;

/// A kernel that can be booted, if it is of the guest's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A bzImage of x86.
    BzImage,
    /// An ELF executable for x86-64: `vmlinux`.
    Elf,
    /// An `Image` of arm64.
    Arm64 {
        /// Where it wants to lie, from a multiple of 2 MiB on.
        text_offset: u64,
        /// Bytes of memory that it takes, with what is not in the file; 0 where it does not say.
        image_size: u64,
    },
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    NoKernel,
    Architecture(&'static str),
    Compressed { how: &'static str, remedy: &'static str },
}

/// What is booted here.
#[cfg(target_arch = "x86_64")]
const WANTED: &str =
    "a bzImage (the `vmlinuz` of a distribution), or an uncompressed `vmlinux` with a PVH entry";
#[cfg(target_arch = "aarch64")]
const WANTED: &str = "an uncompressed `Image` (the `vmlinuz` of some distributions)";

const X86: &str = "x86-64";
const ARM64: &str = "arm64";
const ARM64_BIG_ENDIAN: &str = "big-endian arm64";

/// `flags` of an `Image`: the kernel's byte order.
const BIG_ENDIAN: u64 = 1;

/// Reads the first bytes of a file.
pub(super) fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.rewind()?;
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(head)
}

impl Format {
    /// By a file's first bytes.
    pub(super) fn of(head: &[u8]) -> Result<Self, Complaint> {
        let here =
            |format, theirs, is_here| if is_here { Ok(format) } else { Err(Complaint::Architecture(theirs)) };
        let (on_x86, on_arm64) = (cfg!(target_arch = "x86_64"), cfg!(target_arch = "aarch64"));
        if at(head, 0x202) == Some(*b"HdrS") {
            return here(Self::BzImage, X86, on_x86);
        }
        if let (Some(magic), Some(text_offset), Some(image_size)) = (at(head, 56), at(head, 8), at(head, 16))
            && magic == *b"ARM\x64"
        {
            let (text_offset, image_size) = (u64::from_le_bytes(text_offset), u64::from_le_bytes(image_size));
            // Kernels that say no size (before Linux 3.17) have no flags, either.
            let flags = at(head, 24).map_or(0, u64::from_le_bytes);
            if image_size > 0 && flags & BIG_ENDIAN != 0 {
                return Err(Complaint::Architecture(ARM64_BIG_ENDIAN));
            }
            return here(Self::Arm64 { text_offset, image_size }, ARM64, on_arm64);
        }
        if at(head, 0) == Some(*b"\x7fELF") {
            return match at(head, 18).map(u16::from_le_bytes) {
                Some(MACHINE_X86) => here(Self::Elf, X86, on_x86),
                // The executable before it is made an `Image`.
                Some(MACHINE_ARM64) if on_x86 => Err(Complaint::Architecture(ARM64)),
                _ => Err(Complaint::NoKernel),
            };
        }
        Err(compressed(head).unwrap_or(Complaint::NoKernel))
    }
}

/// By what a file is compressed.
fn compressed(head: &[u8]) -> Option<Complaint> {
    if at(head, 0) == Some(*b"MZ") && at(head, 4) == Some(*b"zimg") {
        let (how, remedy) = ("an EFI zboot image", "give the `Image` that it was made from");
        return Some(Complaint::Compressed { how, remedy });
    }
    let (how, remedy) = match head {
        [0x1f, 0x8b, ..] => ("gzip", "`gzip -dc FILE > Image` does"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "`zstd -dc FILE > Image` does"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", "`xz -dc FILE > Image` does"),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "`lz4 -dc FILE > Image` does"),
        _ => return None,
    };
    Some(Complaint::Compressed { how, remedy })
}

/// So many bytes from there.
pub(super) fn at<const N: usize>(head: &[u8], offset: usize) -> Option<[u8; N]> {
    head.get(offset..)?.first_chunk().copied()
}

impl Complaint {
    /// About this file.
    pub(super) fn of(self, path: &str) -> LinuxError {
        let path = path.to_owned();
        match self {
            Self::NoKernel => LinuxError::NoKernel { path, wanted: WANTED },
            Self::Architecture(theirs) => LinuxError::Architecture { path, theirs },
            Self::Compressed { how, remedy } => LinuxError::Compressed { path, how, remedy },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_with(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 0x280];
        for (at, bytes) in pieces {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn each_kernel_is_told_by_its_marks() {
        let bzimage = Format::of(&head_with(&[(0, b"MZ"), (0x202, b"HdrS")]));
        let image = Format::of(&head_with(&[(0, b"MZ"), (16, &[0, 0, 3, 0]), (56, b"ARM\x64")]));
        let elf = |machine| Format::of(&head_with(&[(0, b"\x7fELF"), (18, &[machine, 0])]));
        if cfg!(target_arch = "x86_64") {
            assert_eq!((bzimage, elf(62)), (Ok(Format::BzImage), Ok(Format::Elf)));
            assert_eq!(
                (image, elf(183)),
                (Err(Complaint::Architecture(ARM64)), Err(Complaint::Architecture(ARM64)))
            );
        } else {
            assert_eq!(image, Ok(Format::Arm64 { text_offset: 0, image_size: 0x3_0000 }));
            assert_eq!(
                (bzimage, elf(62)),
                (Err(Complaint::Architecture(X86)), Err(Complaint::Architecture(X86)))
            );
        }
        assert_eq!(elf(3), Err(Complaint::NoKernel));
        // Little-endian with pages of 64 KiB, and big-endian.
        let flags = |flags| Format::of(&head_with(&[(16, &[0, 0, 3]), (24, &[flags]), (56, b"ARM\x64")]));
        assert_eq!(flags(6), image);
        assert_eq!(flags(7), Err(Complaint::Architecture(ARM64_BIG_ENDIAN)));
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_what_to_do() {
        for (head, sentence) in [
            (&b"#!/bin/sh"[..], "k is no Linux kernel: give "),
            (&[], "k is no Linux kernel"),
            (
                &[0x1f, 0x8b, 8],
                "k is compressed (gzip), and no firmware is here that decompresses it: `gzip -dc",
            ),
            (&[0x28, 0xb5, 0x2f, 0xfd], "k is compressed (zstd)"),
            (b"\xfd7zXZ\0", "k is compressed (xz)"),
            (&[2, 0x21, 0x4c, 0x18], "k is compressed (lz4)"),
            (b"MZ\0\0zimg", "k is compressed (an EFI zboot image)"),
            (b"\x7fELF", "k is no Linux kernel"),
        ] {
            let said = Format::of(head).unwrap_err().of("k").to_string();
            assert!(said.starts_with(sentence), "{said}");
        }
    }
}
