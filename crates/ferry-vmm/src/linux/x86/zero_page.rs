//! The zero page: what a bzImage is told, and what its own header says of it.
//!
//! Facts: the kernel's Documentation/arch/x86/boot.rst and zero-page.rst, arch/x86/include/uapi/asm/bootparam.h.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::super::{LinuxError, align_up, write};
use super::{ACPI, COMMAND_LINE, Initramfs, Stretch};

pub(super) const ADDRESS: u64 = 0x7000;

/// Where 64-bit mode begins, from where the kernel was loaded.
pub(super) const LONG_MODE_ENTRY: u64 = 0x200;

/// The first version of the protocol whose header says whether there is such an entry.
const VERSION_2_12: u16 = 0x20c;

/// `xloadflags`: `XLF_KERNEL_64`.
const KERNEL_64: u16 = 1;

/// `type_of_loader`: none that has a number.
const UNKNOWN_LOADER: u8 = 0xff;

/// The kinds of memory.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Whether the kernel begins in 64-bit mode, wherever it was put.
pub(super) fn begins_in_long_mode(header: &setup_header) -> bool {
    header.version >= VERSION_2_12 && header.xloadflags & KERNEL_64 != 0
}

/// Where the memory ends that the kernel writes before it looks at what is where.
pub(super) fn runs_until(header: &setup_header, load: u64) -> u64 {
    let alignment = u64::from(header.kernel_alignment).next_power_of_two();
    let start = match header.relocatable_kernel {
        0 => header.pref_address,
        _ => align_up(load, alignment).max(header.pref_address),
    };
    start.saturating_add(header.init_size.into())
}

/// The last byte that the initramfs may have.
pub(super) fn initramfs_max(header: &setup_header) -> u64 {
    header.initrd_addr_max.into()
}

/// Writes it.
pub(super) fn write_to(
    memory: &GuestMemoryMmap,
    mut header: setup_header,
    initramfs: Initramfs,
    map: &[Stretch],
) -> Result<(), LinuxError> {
    let low = |address: u64| u32::try_from(address).map_err(|error| LinuxError::Tables(error.to_string()));
    header.type_of_loader = UNKNOWN_LOADER;
    header.cmd_line_ptr = low(COMMAND_LINE)?;
    header.ramdisk_image = low(initramfs.start)?;
    header.ramdisk_size = low(initramfs.bytes)?;
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: ACPI, ..boot_params::default() };
    page.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let mut table = page.e820_table;
    for (entry, stretch) in table.iter_mut().zip(map) {
        let kind = if stretch.is_reserved { E820_RESERVED } else { E820_RAM };
        *entry = boot_e820_entry { addr: stretch.start, size: stretch.bytes, r#type: kind };
    }
    page.e820_table = table;
    write(memory, ADDRESS, page.as_slice())
}
