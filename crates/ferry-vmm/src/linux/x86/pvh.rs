//! PVH's start info: what a kernel is told that is started by it.
//!
//! Facts: Xen's docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h (version 1).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::super::{LinuxError, write};
use super::{ACPI, COMMAND_LINE, Initramfs, Stretch};

pub(super) const ADDRESS: u64 = 0x6000;
const MODULES: u64 = 0x6100;
const MEMORY_MAP: u64 = 0x6200;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// The kinds of memory, as e820's.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Writes it.
pub(super) fn write_to(
    memory: &GuestMemoryMmap,
    initramfs: Initramfs,
    map: &[Stretch],
) -> Result<(), LinuxError> {
    let has_initramfs = initramfs.bytes > 0;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(has_initramfs),
        modlist_paddr: if has_initramfs { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    write(memory, ADDRESS, info.as_slice())?;
    let module = hvm_modlist_entry { paddr: initramfs.start, size: initramfs.bytes, ..Default::default() };
    write(memory, MODULES, module.as_slice())?;
    for (place, stretch) in (MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(map) {
        let type_ = if stretch.is_reserved { RESERVED } else { RAM };
        let entry =
            hvm_memmap_table_entry { addr: stretch.start, size: stretch.bytes, type_, ..Default::default() };
        write(memory, place, entry.as_slice())?;
    }
    Ok(())
}
