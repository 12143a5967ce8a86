//! Where a kernel of x86-64 and what it is told lie in guest memory.
//!
//! | guest-physical address | what |
//! |---|---|
//! | 0x500 | GDT |
//! | 0x6000 | PVH: start info, list of modules, memory map |
//! | 0x7000 | zero page (`boot_params`) |
//! | 0x9000 | page tables that map the first 4 GiB to themselves |
//! | 0x20000 | command line |
//! | 0xe0000 | ACPI tables, which begin with the RSDP |
//! | 0xffff0 | where a restart by way of the firmware leads |
//! | 1 MiB, or where an ELF's segments want to be | kernel |
//! | as high as it goes below the hole | initramfs |
//!
//! What is told of memory (e820, or PVH's memory map): all of it is there, but what lies from 0x9fc00 to 1 MiB, where a PC
//! has its firmware, and here the ACPI tables and the way to restart are, is reserved.

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Format, Initramfs, LinuxError, Source, Surroundings, align_up, write};

mod acpi;
mod elf;
mod pvh;
mod registers;
mod restart;
mod zero_page;

pub(crate) use registers::{name_of, start_at};

const COMMAND_LINE: u64 = 0x2_0000;
const ACPI: u64 = 0xe_0000;
const PAGE: u64 = 0x1000;

/// What a PC's firmware keeps for itself.
const FIRMWARE_START: u64 = 0x9_fc00;
const FIRMWARE_END: u64 = 0x10_0000;

/// The longest that the ACPI tables may be.
const ACPI_BYTES: u64 = restart::ADDRESS - ACPI;

/// Where a kernel begins, and what it is told where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 64-bit mode, with the zero page.
    Long {
        /// Its first instruction.
        kernel: u64,
    },
    /// In 32-bit mode, with PVH's start info.
    Pvh {
        /// Its first instruction.
        kernel: u64,
    },
}

/// What of guest memory is ordinary, and what is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    start: u64,
    bytes: u64,
    is_reserved: bool,
}

/// Loads a kernel of either form with all that it is told.
pub(super) fn load(
    mut kernel: Source,
    initramfs: Option<Source>,
    command_line: &str,
    around: &Surroundings<'_>,
) -> Result<Entry, LinuxError> {
    let tables = acpi::tables(ACPI, around.cpus, around.devices)?;
    if tables.len() as u64 > ACPI_BYTES {
        return Err(LinuxError::Tables(format!("they have {} bytes", tables.len())));
    }
    let entry = match kernel.format()? {
        Format::BzImage => bzimage(kernel, initramfs, command_line, around)?,
        Format::Elf | Format::Arm64 { .. } => elf::load(kernel, initramfs, around)?,
    };
    write(around.memory, ACPI, &tables)?;
    restart::write_to(around.memory)?;
    write(around.memory, COMMAND_LINE, &[command_line.as_bytes(), &[0]].concat())?;
    registers::write_tables(around.memory)?;
    Ok(entry)
}

/// A bzImage: it decompresses itself to where it runs.
fn bzimage(
    mut kernel: Source,
    initramfs: Option<Source>,
    command_line: &str,
    around: &Surroundings<'_>,
) -> Result<Entry, LinuxError> {
    let loaded = BzImage::load(around.memory, None, &mut kernel.file, Some(GuestAddress(FIRMWARE_END)))
        .map_err(|source| unloadable(&kernel, around, source))?;
    let header = loaded.setup_header.unwrap_or_default();
    let path = || kernel.path.clone();
    if !zero_page::begins_in_long_mode(&header) {
        let (entry, option) = ("64-bit entry", "CONFIG_X86_64");
        return Err(LinuxError::NoEntry { path: path(), entry, option });
    }
    let max = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX);
    if command_line.len() > max {
        return Err(LinuxError::CommandLine { bytes: command_line.len(), max });
    }
    let load = loaded.kernel_load.0;
    let end = zero_page::runs_until(&header, load).max(loaded.kernel_end);
    let highest = zero_page::initramfs_max(&header);
    let placed = place(initramfs, end, highest, around)?;
    zero_page::write_to(around.memory, header, placed, &memory_map(around))?;
    Ok(Entry::Long { kernel: load + zero_page::LONG_MODE_ENTRY })
}

/// A kernel that does not fit is told from one that cannot be read.
fn unloadable(kernel: &Source, around: &Surroundings<'_>, source: linux_loader::loader::Error) -> LinuxError {
    let (needed, available) = (FIRMWARE_END.saturating_add(kernel.bytes), low_end(around));
    if needed > available {
        return LinuxError::TooLarge { needed, available };
    }
    kernel.unloadable(source)
}

/// Puts the initramfs as high as it goes below the hole, above the kernel.
fn place(
    source: Option<Source>,
    kernel_end: u64,
    highest: u64,
    around: &Surroundings<'_>,
) -> Result<Initramfs, LinuxError> {
    let available = low_end(around);
    let bytes = source.as_ref().map_or(0, |source| source.bytes);
    let needed = align_up(kernel_end, PAGE).saturating_add(align_up(bytes, PAGE));
    if needed > available {
        return Err(LinuxError::TooLarge { needed, available });
    }
    let end = available.min(highest.saturating_add(1));
    if needed > end {
        return Err(LinuxError::TooHigh { bytes, needed, end });
    }
    let Some(mut source) = source else { return Ok(Initramfs::default()) };
    let start = (end - bytes) & !(PAGE - 1);
    source.put(around.memory, start)?;
    Ok(Initramfs { start, bytes })
}

/// Where memory ends that begins at 0.
fn low_end(around: &Surroundings<'_>) -> u64 {
    around.memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

/// What a kernel is told of memory.
fn memory_map(around: &Surroundings<'_>) -> Vec<Stretch> {
    let ordinary = |start: u64, end: u64| Stretch { start, bytes: end - start, is_reserved: false };
    let mut map = Vec::new();
    for region in around.memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start >= FIRMWARE_END {
            map.push(ordinary(start, end));
            continue;
        }
        map.push(ordinary(start, FIRMWARE_START));
        map.push(Stretch { is_reserved: true, ..ordinary(FIRMWARE_START, FIRMWARE_END) });
        map.push(ordinary(FIRMWARE_END, end));
    }
    map
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use ferry_protocol::RegionSpan;
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::super::error::{INITRAMFS, KERNEL};
    use super::*;

    fn memory(low: u64, high: u64) -> GuestMemoryMmap {
        let spans = [RegionSpan { start: 0, length: low }, RegionSpan { start: 4 << 30, length: high }];
        ferry_kvm::allocate(if high > 0 { &spans } else { &spans[..1] }).unwrap()
    }

    fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
        into[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A bzImage whose setup is one sector and whose kernel is 4 KiB of 0xcc.
    fn bzimage_bytes() -> Vec<u8> {
        let mut file = vec![0; 1024];
        put(&mut file, 0x1f1, &[1]);
        put(&mut file, 0x202, b"HdrS\x0f\x02");
        put(&mut file, 0x211, &[1]); // loadflags: LOADED_HIGH
        put(&mut file, 0x214, &0x10_0000_u32.to_le_bytes());
        put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
        put(&mut file, 0x234, &[1, 21, 1, 0]); // relocatable, min_alignment, xloadflags: XLF_KERNEL_64
        put(&mut file, 0x238, &255_u32.to_le_bytes());
        put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
        put(&mut file, 0x260, &0x80_0000_u32.to_le_bytes());
        file.resize(1024 + 4096, 0xcc);
        file
    }

    /// A `vmlinux` with one segment at 16 MiB, which takes 8 MiB, and a note with its PVH entry.
    fn elf_bytes(note: u32) -> Vec<u8> {
        let mut file = vec![0; 512];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(&mut file, 24, &0x100_0000_u64.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 52, &[64, 0, 56, 0, 2, 0]);
        let mut header = |at: usize, kind: u32, fields: [u64; 5]| {
            put(&mut file, at, &kind.to_le_bytes());
            for (index, field) in fields.iter().enumerate() {
                put(&mut file, at + 8 + index * 8, &field.to_le_bytes());
            }
        };
        // Offset, virtual and physical address, bytes in the file and in memory.
        header(64, 1, [256, 0x100_0000, 0x100_0000, 16, 0x80_0000]);
        header(120, 4, [288, 0, 0, 20, 20]);
        put(&mut file, 256, &[0xcc; 16]);
        put(&mut file, 288, &[4, 0, 0, 0, 4, 0, 0, 0]);
        put(&mut file, 296, &note.to_le_bytes());
        put(&mut file, 300, b"Xen\0");
        put(&mut file, 304, &0x100_0040_u32.to_le_bytes());
        file
    }

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load_all(
        memory: &GuestMemoryMmap,
        kernel: &[u8],
        initramfs: Option<&[u8]>,
        command_line: &str,
    ) -> Result<Entry, LinuxError> {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Source::open(&file(folder.path(), "k", kernel), KERNEL).unwrap();
        let initramfs =
            initramfs.map(|bytes| Source::open(&file(folder.path(), "i", bytes), INITRAMFS).unwrap());
        load(kernel, initramfs, command_line, &Surroundings { memory, devices: 1, cpus: &[0, 1] })
    }

    fn read<const N: usize>(memory: &GuestMemoryMmap, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    #[test]
    fn a_bzimage_finds_its_zero_page() {
        let memory = memory(64 << 20, 16 << 20);
        let entry = load_all(&memory, &bzimage_bytes(), Some(&[7; 5000]), "console=ttyS0").unwrap();
        assert_eq!(entry, Entry::Long { kernel: 0x10_0200 });
        assert_eq!(read(&memory, 0x10_0000), [0xcc; 4]);
        let page: [u8; 4096] = read(&memory, zero_page::ADDRESS);
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!((&page[0x202..0x206], page[0x210], word(0x70)), (&b"HdrS"[..], 0xff, 0xe_0000));
        assert_eq!((word(0x228), word(0x218), word(0x21c)), (0x2_0000, (64 << 20) - 8192, 5000));
        assert_eq!(read(&memory, (64 << 20) - 8192), [7; 4]);
        assert_eq!(&read::<14>(&memory, 0x2_0000), b"console=ttyS0\0");
        assert_eq!(&read::<8>(&memory, ACPI), b"RSD PTR ");
        assert_eq!(read(&memory, 0xf_fff0), [0xba, 0xf9, 0x0c, 0xb0, 6, 0xee]);
        let e820: Vec<(u64, u64, u32)> = (0..usize::from(page[0x1e8]))
            .map(|entry| {
                let at = 0x2d0 + entry * 20;
                let long = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
                (long(at), long(at + 8), word(at + 16))
            })
            .collect();
        let expected = [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (0x10_0000, (64 << 20) - 0x10_0000, 1),
            (4 << 30, 16 << 20, 1),
        ];
        assert_eq!(e820, expected);
    }

    #[test]
    fn an_elf_with_a_pvh_entry_finds_its_start_info() {
        let memory = memory(64 << 20, 0);
        let entry = load_all(&memory, &elf_bytes(18), Some(&[7; 5000]), "quiet").unwrap();
        assert_eq!(entry, Entry::Pvh { kernel: 0x100_0040 });
        assert_eq!(read(&memory, 0x100_0000), [0xcc; 16]);
        assert_eq!(read(&memory, 0xf_fff0), [0xba, 0xf9, 0x0c, 0xb0, 6, 0xee]);
        let words: Vec<u32> = read::<56>(&memory, pvh::ADDRESS)
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0x336e_c578, 1, 0, 1, 0x6100, 0, 0x2_0000, 0, 0xe_0000, 0, 0x6200, 0, 3, 0]);
        let module: [u8; 16] = read(&memory, 0x6100);
        assert_eq!(u64::from_le_bytes(module[..8].try_into().unwrap()), (64 << 20) - 8192);
        assert_eq!(module[8..], 5000_u64.to_le_bytes());
        // Reserved: the second stretch.
        assert_eq!(read(&memory, 0x6200 + 24 + 16), [2, 0, 0, 0]);
    }

    #[test]
    fn what_cannot_be_booted_has_its_sentence() {
        let memory = memory(32 << 20, 0);
        let mut of_32_bits = bzimage_bytes();
        of_32_bits[0x236] = 0;
        let mut cut = bzimage_bytes();
        cut[0x1f1] = 200;
        let long = "x".repeat(256);
        let large = vec![0; 9 << 20];
        for (kernel, initramfs, line, sentence) in [
            (of_32_bits, None, "", "has no 64-bit entry: give a kernel built with CONFIG_X86_64"),
            (elf_bytes(17), None, "", "has no PVH entry: give a kernel built with CONFIG_PVH"),
            (cut, None, "", "cannot be loaded"),
            (
                bzimage_bytes(),
                None,
                long.as_str(),
                "a command line of 256 bytes cannot be given to this kernel: it takes 255",
            ),
            (
                bzimage_bytes(),
                Some(large.as_slice()),
                "",
                "need 34603008 bytes of memory in one piece, and the guest has 33554432",
            ),
        ] {
            let error = load_all(&memory, &kernel, initramfs, line).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
        let small = memory_of_one_mib();
        let error = load_all(&small, &bzimage_bytes(), None, "").unwrap_err();
        assert!(matches!(error, LinuxError::TooLarge { needed: 0x10_1400, available: 0x10_0000 }), "{error}");
    }

    fn memory_of_one_mib() -> GuestMemoryMmap {
        memory(1 << 20, 0)
    }

    #[test]
    fn a_bzimage_lies_above_the_tables_and_its_initramfs_where_it_takes_one() {
        let memory = memory(64 << 20, 0);
        let mut low = bzimage_bytes();
        put(&mut low, 0x214, &0xe_0000_u32.to_le_bytes());
        assert!(matches!(load_all(&memory, &low, None, "").unwrap_err(), LinuxError::Load { .. }));
        let mut narrow = bzimage_bytes();
        put(&mut narrow, 0x22c, &0x1ff_ffff_u32.to_le_bytes());
        let error = load_all(&memory, &narrow, Some(&vec![0; 9 << 20]), "").unwrap_err().to_string();
        assert!(error.contains("does not fit behind the kernel and below 0x2000000"), "{error}");
        load_all(&memory, &narrow, Some(&[7; 5000]), "").unwrap();
        for field in [0x214, 0x258, 0x25c, 0x260] {
            let mut wild = bzimage_bytes();
            put(&mut wild, field, &u32::MAX.to_le_bytes());
            assert!(load_all(&memory, &wild, None, "").is_err(), "{field:#x}");
        }
    }

    #[test]
    fn an_elf_whose_segments_do_not_lie_apart_in_memory_is_refused_before_it_is_loaded() {
        let memory = memory(32 << 20, 0);
        // In its first program header: the address, bytes in the file and in memory.
        let with = |fields: &[(usize, u64)]| {
            let mut file = elf_bytes(18);
            for (at, value) in fields {
                put(&mut file, 64 + at, &value.to_le_bytes());
            }
            load_all(&memory, &file, None, "").unwrap_err().to_string()
        };
        for (said, sentence) in [
            (with(&[(24, 0x7000)]), "wants 8388608 bytes at 0x7000, where the guest's tables are: give"),
            (with(&[(24, 0xf_fff0)]), "at 0xffff0, where the guest's tables are"),
            (
                with(&[(24, 30 << 20)]),
                "need 39845888 bytes of memory in one piece, and the guest has 33554432",
            ),
            (with(&[(24, 3 << 30)]), "at 0xc0000000, and no guest has memory in one piece up to there"),
            (with(&[(24, u64::MAX)]), "at 0xffffffffffffffff, and no guest"),
            (with(&[(40, u64::MAX)]), "wants 18446744073709551615 bytes at 0x1000000, and no guest"),
            (with(&[(40, 8)]), "wants 8 bytes at 0x1000000, and has more for there"),
            (with(&[(24, 0x110_0000)]), "has no PVH entry"),
            (with(&[(8, 500)]), "cannot be loaded"),
        ] {
            assert!(said.contains(sentence), "{said}");
        }
        assert_eq!(read(&memory, 0x7000), [0; 4], "nothing was written there");
        let mut twice = elf_bytes(18);
        let first: Vec<u8> = twice[64..120].to_vec();
        put(&mut twice, 120, &first);
        let said = load_all(&memory, &twice, None, "").unwrap_err().to_string();
        assert!(said.contains("where another of its segments is"), "{said}");
        for count in [0, 65] {
            let mut file = elf_bytes(18);
            file[56] = count;
            let said = load_all(&memory, &file, None, "").unwrap_err().to_string();
            assert!(said.contains(&format!("has {count} program headers, and 1 to 64")), "{said}");
        }
        let said = load_all(&memory, &elf_bytes(18)[..150], None, "").unwrap_err().to_string();
        assert!(said.contains("cannot be read"), "{said}");
        for start in [u64::MAX, u64::MAX - 60, 1 << 63, 500] {
            let mut file = elf_bytes(18);
            put(&mut file, 32, &start.to_le_bytes());
            let said = load_all(&memory, &file, None, "").unwrap_err().to_string();
            assert!(said.contains("cannot be read"), "{said}");
        }
    }
}
