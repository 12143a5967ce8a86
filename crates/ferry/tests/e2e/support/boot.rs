//! Kernels of a few instructions.

#[path = "../../../../ferry-vmm/tests/support/bzimage.rs"]
mod bzimage;

pub(crate) use bzimage::bzimage as kernel;

/// What comes over the serial port goes back there, until a `q`, after which the guest is off: until bit 0 of the line status is
/// set: mov edx, 0x3fd; in al, dx; test al, 1; jz; mov edx, 0x3f8; in al, dx; out dx, al; cmp al, 'q'; jnz to the start;
/// mov edx, 0x600; mov al, 0x34; out dx, al; hlt.
pub(crate) const ECHO: &[u8] = &[
    0xba, 0xfd, 3, 0, 0, 0xec, 0xa8, 1, 0x74, 0xf6, 0xba, 0xf8, 3, 0, 0, 0xec, 0xee, 0x3c, b'q', 0x75, 0xeb,
    0xba, 0, 6, 0, 0, 0xb0, 0x34, 0xee, 0xf4,
];

/// hlt; jmp to it.
pub(crate) const DEAF: &[u8] = &[0xf4, 0xeb, 0xfd];

/// Prints without an end: mov edx, 0x3f8; mov al, 'x'; out dx, al; jmp to the last.
pub(crate) const PRINT: &[u8] = &[0xba, 0xf8, 3, 0, 0, 0xb0, b'x', 0xee, 0xeb, 0xfd];

/// Prints `K` and asks for a restart: mov edx, 0x3f8; mov al, 'K'; out dx, al; mov edx, 0xcf9; mov al, 6; out dx, al; hlt; jmp.
pub(crate) const RESTART: &[u8] =
    &[0xba, 0xf8, 3, 0, 0, 0xb0, b'K', 0xee, 0xba, 0xf9, 0x0c, 0, 0, 0xb0, 6, 0xee, 0xf4, 0xeb, 0xfd];
