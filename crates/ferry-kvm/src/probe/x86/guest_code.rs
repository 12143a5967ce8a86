//! The probe guest's program and the memory around it.
//!
//! The vCPU begins in 64-bit mode at privilege level 3 with IOPL 3, because this is what every KVM runs
//! natively: level 0 is emulated by `kvm_pvm`, and an emulator may show other values than the
//! processor. The program reads a table of leaves, writes what CPUID shows for each, and says so by an
//! `OUT`; when it is let go again it starts over, with whatever table lies there then.
//!
//! | guest-physical = linear | what |
//! |---|---|
//! | 0x1000 | GDT |
//! | 0x2000 | TSS; its I/O permission bitmap opens [`PORT`] (`kvm_pvm` asks it instead of IOPL) |
//! | 0x3000 | number of leaves, then the TSC, 8 bytes each |
//! | 0x4000 | the program |
//! | 0x5000 | PML4, PDPT, page directory, which maps 2 MiB |
//! | 0x8000 | leaves: EAX and ECX, 4 bytes each |
//! | 0xa000 | answers: EAX, EBX, ECX, EDX, 4 bytes each |
//!
//! Facts: Intel SDM volume 2 for the encodings; volume 3, 3.4.5, 4.5, 8.2 for the tables; volume 3,
//! 27.3.1 for what an entry checks.

use ferry_contract::CpuidEntry;
use ferry_memory::{GuestRam, RamError};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Bytes of memory that the guest has.
pub(super) const MEMORY_BYTES: u64 = 2 << 20;

/// Where the guest says that it is done.
pub(super) const PORT: u16 = 0x80;
const PORT_BYTE: u8 = 0x80;

/// The most leaves of one table.
pub(super) const MAX_LEAVES: usize = 0x2000 / 8;

const GDT: u64 = 0x1000;
const TSS: u64 = 0x2000;
const COUNT: u64 = 0x3000;
const TSC: u64 = 0x3008;
const CODE: u64 = 0x4000;
const PML4: u64 = 0x5000;
const PDPT: u64 = 0x6000;
const DIRECTORY: u64 = 0x7000;
const LEAVES: u64 = 0x8000;
const ANSWERS: u64 = 0xa000;

/// The program. R12 = [`COUNT`], R13 = [`LEAVES`], R14 = [`ANSWERS`], and they stay so.
#[rustfmt::skip]
const PROGRAM: [u8; 60] = [
    // start:
    0x0f, 0x31,                   // rdtsc
    0x41, 0x89, 0x44, 0x24, 0x08, // mov [r12+8], eax
    0x41, 0x89, 0x54, 0x24, 0x0c, // mov [r12+12], edx
    0x4d, 0x8b, 0x04, 0x24,       // mov r8, [r12]
    0x4c, 0x89, 0xee,             // mov rsi, r13
    0x4c, 0x89, 0xf7,             // mov rdi, r14
    // next:
    0x4d, 0x85, 0xc0,             // test r8, r8
    0x74, 0x1d,                   // jz done
    0x8b, 0x06,                   // mov eax, [rsi]
    0x8b, 0x4e, 0x04,             // mov ecx, [rsi+4]
    0x0f, 0xa2,                   // cpuid
    0x89, 0x07,                   // mov [rdi], eax
    0x89, 0x5f, 0x04,             // mov [rdi+4], ebx
    0x89, 0x4f, 0x08,             // mov [rdi+8], ecx
    0x89, 0x57, 0x0c,             // mov [rdi+12], edx
    0x83, 0xc6, 0x08,             // add esi, 8
    0x83, 0xc7, 0x10,             // add edi, 16
    0x49, 0xff, 0xc8,             // dec r8
    0xeb, 0xde,                   // jmp next
    // done:
    0xe6, PORT_BYTE,              // out PORT, al
    0xeb, 0xc4,                   // jmp start
];

// Page-table entries: present, writable, user, accessed; a large page dirty and of that size, too.
const TABLE_ENTRY: u64 = 0x27;
const LARGE_ENTRY: u64 = 0xe7;

// Selectors with their requested privilege level.
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

/// The TSS: where the offset of the bitmap stands, the bitmap, the last byte after it.
const IO_MAP_POINTER: usize = 0x66;
const IO_MAP: u8 = 0x68;
const TASK_BYTES: usize = IO_MAP as usize + PORT as usize / 8 + 2;

/// Null, level 0 code and data, level 3 data and code, the TSS in two entries.
const DESCRIPTORS: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_0000_0000 | (TASK_BYTES as u64 - 1) | TSS << 16,
    0,
];

/// Writes the program and its tables.
pub(super) fn load(ram: &GuestRam) -> Result<(), RamError> {
    ram.write(CODE, &PROGRAM)?;
    ram.write(GDT, &bytes(&DESCRIPTORS))?;
    ram.write(TSS, &task())?;
    ram.write(PML4, &bytes(&[PDPT | TABLE_ENTRY]))?;
    ram.write(PDPT, &bytes(&[DIRECTORY | TABLE_ENTRY]))?;
    ram.write(DIRECTORY, &bytes(&[LARGE_ENTRY]))
}

/// Puts a table of leaves (EAX and ECX before the instruction) into memory; at most [`MAX_LEAVES`].
pub(super) fn ask(ram: &GuestRam, leaves: &[(u32, u32)]) -> Result<(), RamError> {
    let leaves = leaves.get(..MAX_LEAVES).unwrap_or(leaves);
    let words: Vec<u64> =
        leaves.iter().map(|&(leaf, subleaf)| u64::from(leaf) | u64::from(subleaf) << 32).collect();
    ram.write(COUNT, &bytes(&[words.len() as u64]))?;
    ram.write(LEAVES, &bytes(&words))
}

/// What the guest read for such a table.
pub(super) fn answers(ram: &GuestRam, leaves: &[(u32, u32)]) -> Result<Vec<CpuidEntry>, RamError> {
    let mut entries = Vec::with_capacity(leaves.len());
    for (&(leaf, subleaf), address) in leaves.iter().zip((ANSWERS..).step_by(16)) {
        let [eax, ebx, ecx, edx] = [0, 4, 8, 12].map(|offset| read_u32(ram, address + offset));
        entries.push(CpuidEntry {
            leaf,
            subleaf,
            indexed: false,
            eax: eax?,
            ebx: ebx?,
            ecx: ecx?,
            edx: edx?,
        });
    }
    Ok(entries)
}

/// What the guest read from its TSC when it began.
pub(super) fn tsc(ram: &GuestRam) -> Result<u64, RamError> {
    let mut bytes = [0; 8];
    ram.read(TSC, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_u32(ram: &GuestRam, address: u64) -> Result<u32, RamError> {
    let mut bytes = [0; 4];
    ram.read(address, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// In the bitmap a clear bit opens a port; a byte of ones follows it.
fn task() -> [u8; TASK_BYTES] {
    let mut bytes = [0; TASK_BYTES];
    for (place, byte) in bytes.iter_mut().enumerate() {
        let first = place.checked_sub(usize::from(IO_MAP)).map(|offset| offset * 8);
        *byte = match (place, first) {
            (IO_MAP_POINTER, _) => IO_MAP,
            (_, Some(first)) => {
                (0..8).filter(|bit| first + bit != usize::from(PORT)).fold(0, |ones, bit| ones | 1 << bit)
            }
            _ => 0,
        };
    }
    bytes
}

pub(super) fn registers() -> kvm_regs {
    // RFLAGS: the bit that is always 1, and IOPL 3.
    kvm_regs { rip: CODE, r12: COUNT, r13: LEAVES, r14: ANSWERS, rflags: 0x3002, ..Default::default() }
}

/// Special registers for level 3 in 64-bit mode, on top of what the vCPU has.
pub(super) fn special_registers(mut sregs: kvm_sregs) -> kvm_sregs {
    let data = segment(USER_DATA, 3, false);
    (sregs.cs, sregs.ss) = (segment(USER_CODE, 11, true), data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
    let limit = u32::try_from(TASK_BYTES - 1).unwrap_or(u32::MAX);
    sregs.tr = kvm_segment { base: TSS, limit, selector: TASK, type_: 11, present: 1, ..Default::default() };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: GDT, limit: 8 * 7 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    // CR0: PE, MP, ET, NE, WP, PG. CR4: PAE, OSFXSR, OSXMMEXCPT. EFER: LME, LMA.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, PML4, 0x620, 0x500);
    sregs
}

/// A flat segment of level 3.
fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a short jump at `place` goes.
    fn target(place: usize) -> usize {
        (place + 2).wrapping_add_signed(isize::from(PROGRAM[place + 1].cast_signed()))
    }

    #[test]
    fn jumps_meet_their_labels() {
        let (next, done) = (22, PROGRAM.len() - 4);
        assert_eq!(PROGRAM[next..next + 3], [0x4d, 0x85, 0xc0]);
        assert_eq!((PROGRAM[next + 3], target(next + 3)), (0x74, done));
        assert_eq!((PROGRAM[done - 2], target(done - 2)), (0xeb, next));
        assert_eq!((PROGRAM[done], PROGRAM[done + 2], target(done + 2)), (0xe6, 0xeb, 0));
    }

    #[test]
    fn the_bitmap_opens_one_port() {
        let tss = task();
        let open = |port: usize| tss.get(0x68 + port / 8).is_some_and(|byte| byte >> (port % 8) & 1 == 0);
        assert!((0..=0xffff).all(|port| open(port) == (port == usize::from(PORT))));
        assert_eq!(tss[TASK_BYTES - 1], 0xff);
        assert_eq!(tss[IO_MAP_POINTER..IO_MAP_POINTER + 2], [0x68, 0]);
    }
}
