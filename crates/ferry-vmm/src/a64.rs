//! An assembler of the few A64 instructions that programs of arm64 guests are made of.
//!
//! Each method appends one instruction, and has the name that the manual has for it where there is one of that
//! name alone. Immediates that no instruction holds, and labels that are nowhere, are errors of
//! [`Assembler::finish`]. Facts: Arm's DDI 0487, C4.1 "A64 instruction set encoding" and C6.2.

use ferry_contract::arm64::SystemRegister;

/// A general register: the 64 bits of it, or where a method says so the lower 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct X(pub(crate) u8);

/// The zero register.
pub(crate) const ZR: X = X(31);

/// The stack pointer, where a register is a base.
pub(crate) const SP: X = X(31);

impl X {
    fn at(self, bit: u32) -> u32 {
        u32::from(self.0) << bit
    }
}

/// A condition that the flags hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Ne = 1,
    /// Unsigned: higher or the same.
    Hs = 2,
    /// Unsigned: lower.
    Lo = 3,
    /// Unsigned: lower or the same.
    Ls = 9,
}

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssemblerError {
    /// An operand that its instruction cannot hold.
    #[error("instruction {0} cannot hold its operand")]
    Operand(usize),
    /// A branch to a label that was never set, or too far away.
    #[error("instruction {0} branches to no place in reach")]
    Branch(usize),
}

/// A branch to be filled in: its bits for the distance, in instructions.
#[derive(Debug)]
struct Branch {
    from: usize,
    to: Label,
    bits: u32,
    shift: u32,
}

/// A program that grows.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    words: Vec<u32>,
    labels: Vec<Option<usize>>,
    branches: Vec<Branch>,
    error: Option<AssemblerError>,
}

impl Assembler {
    /// The machine code.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, AssemblerError> {
        for Branch { from, to, bits, shift } in std::mem::take(&mut self.branches) {
            let distance = self.offset(to).and_then(|to| {
                let distance = i32::try_from(to).ok()? - i32::try_from(from).ok()?;
                (distance >= -(1 << (bits - 1)) && distance < 1 << (bits - 1)).then_some(distance)
            });
            match (distance, self.words.get_mut(from)) {
                (Some(distance), Some(word)) => {
                    *word |= (distance.cast_unsigned() & ((1 << bits) - 1)) << shift;
                }
                _ => return Err(AssemblerError::Branch(from)),
            }
        }
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.words.iter().flat_map(|word| word.to_le_bytes()).collect()),
        }
    }

    /// A label that is nowhere yet.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub(crate) fn set(&mut self, label: Label) {
        let here = self.words.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(here);
        }
    }

    /// A label here.
    pub(crate) fn here(&mut self) -> Label {
        let label = self.label();
        self.set(label);
        label
    }

    /// A label so many instructions after the first, which need not be of this program.
    pub(crate) fn label_at(&mut self, place: usize) -> Label {
        self.labels.push(Some(place));
        Label(self.labels.len() - 1)
    }

    /// Fills up with `NOP` to so many instructions.
    pub(crate) fn fill_to(&mut self, place: usize) {
        self.words.resize(self.words.len().max(place), 0xd503_201f);
    }

    /// How many instructions lie before a label.
    pub(crate) fn offset(&self, label: Label) -> Option<usize> {
        self.labels.get(label.0).copied().flatten()
    }

    fn push(&mut self, word: u32) {
        self.words.push(word);
    }

    /// An operand of so many bits.
    fn field(&mut self, value: u64, bits: u32, shift: u32) -> u32 {
        match u32::try_from(value) {
            Ok(value) if value < 1 << bits => value << shift,
            _ => {
                self.error.get_or_insert(AssemblerError::Operand(self.words.len()));
                0
            }
        }
    }

    /// An offset of memory in units of the access.
    fn scaled(&mut self, offset: u16, unit: u16) -> u32 {
        let rest = u64::from(offset % unit) << 12;
        self.field(u64::from(offset / unit) | rest, 12, 10)
    }

    fn branch(&mut self, word: u32, to: Label, bits: u32, shift: u32) {
        self.branches.push(Branch { from: self.words.len(), to, bits, shift });
        self.push(word);
    }

    /// Any constant, in as many instructions as it takes.
    pub(crate) fn mov_imm(&mut self, d: X, value: u64) {
        let parts: Vec<(u32, u32)> = (0..4)
            .zip([0, 16, 32, 48])
            .map(|(place, shift)| (place, (value >> shift & 0xffff) as u32))
            .filter(|(_, part)| *part != 0)
            .collect();
        let first = parts.first().copied().unwrap_or_default();
        for (place, part) in std::iter::once(first).chain(parts.iter().skip(1).copied()) {
            let base = if (place, part) == first { 0xd280_0000 } else { 0xf280_0000 };
            self.push(base | place << 21 | part << 5 | d.at(0));
        }
    }

    pub(crate) fn mov(&mut self, d: X, m: X) {
        self.orr(d, ZR, m);
    }

    pub(crate) fn add_imm(&mut self, d: X, n: X, value: u64) {
        let value = self.field(value, 12, 10);
        self.push(0x9100_0000 | value | n.at(5) | d.at(0));
    }

    pub(crate) fn sub_imm(&mut self, d: X, n: X, value: u64) {
        let value = self.field(value, 12, 10);
        self.push(0xd100_0000 | value | n.at(5) | d.at(0));
    }

    pub(crate) fn cmp_imm(&mut self, n: X, value: u64) {
        let value = self.field(value, 12, 10);
        self.push(0xf100_0000 | value | n.at(5) | ZR.at(0));
    }

    pub(crate) fn cmp(&mut self, n: X, m: X) {
        self.push(0xeb00_0000 | m.at(16) | n.at(5) | ZR.at(0));
    }

    pub(crate) fn add(&mut self, d: X, n: X, m: X) {
        self.push(0x8b00_0000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn sub(&mut self, d: X, n: X, m: X) {
        self.push(0xcb00_0000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn and(&mut self, d: X, n: X, m: X) {
        self.push(0x8a00_0000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn orr(&mut self, d: X, n: X, m: X) {
        self.push(0xaa00_0000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn eor(&mut self, d: X, n: X, m: X) {
        self.push(0xca00_0000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn mul(&mut self, d: X, n: X, m: X) {
        self.push(0x9b00_7c00 | m.at(16) | n.at(5) | d.at(0));
    }

    /// Shifts left by what a register says.
    pub(crate) fn lslv(&mut self, d: X, n: X, m: X) {
        self.push(0x9ac0_2000 | m.at(16) | n.at(5) | d.at(0));
    }

    pub(crate) fn lsl(&mut self, d: X, n: X, by: u64) {
        let (by, low) = (self.field(by, 6, 0), 0xd340_0000 | n.at(5) | d.at(0));
        self.push(low | ((64 - by) & 63) << 16 | (63 - by) << 10);
    }

    pub(crate) fn lsr(&mut self, d: X, n: X, by: u64) {
        let by = self.field(by, 6, 16);
        self.push(0xd340_fc00 | by | n.at(5) | d.at(0));
    }

    /// `n` if the condition holds, else `m`.
    pub(crate) fn csel(&mut self, d: X, n: X, m: X, condition: Condition) {
        self.push(0x9a80_0000 | m.at(16) | (condition as u32) << 12 | n.at(5) | d.at(0));
    }

    pub(crate) fn ldr(&mut self, t: X, base: X, offset: u16) {
        let offset = self.scaled(offset, 8);
        self.push(0xf940_0000 | offset | base.at(5) | t.at(0));
    }

    pub(crate) fn str(&mut self, t: X, base: X, offset: u16) {
        let offset = self.scaled(offset, 8);
        self.push(0xf900_0000 | offset | base.at(5) | t.at(0));
    }

    /// Loads 32 bits.
    pub(crate) fn ldr_w(&mut self, t: X, base: X, offset: u16) {
        let offset = self.scaled(offset, 4);
        self.push(0xb940_0000 | offset | base.at(5) | t.at(0));
    }

    /// Stores 32 bits.
    pub(crate) fn str_w(&mut self, t: X, base: X, offset: u16) {
        let offset = self.scaled(offset, 4);
        self.push(0xb900_0000 | offset | base.at(5) | t.at(0));
    }

    /// Loads the word of 64 bits with this index.
    pub(crate) fn ldr_at(&mut self, t: X, base: X, index: X) {
        self.push(0xf860_7800 | index.at(16) | base.at(5) | t.at(0));
    }

    /// Stores the word of 64 bits with this index.
    pub(crate) fn str_at(&mut self, t: X, base: X, index: X) {
        self.push(0xf820_7800 | index.at(16) | base.at(5) | t.at(0));
    }

    /// Stores two registers onto the stack.
    pub(crate) fn push_pair(&mut self, t: X, t2: X) {
        self.push(0xa9bf_0000 | t2.at(10) | SP.at(5) | t.at(0));
    }

    /// Loads two registers from the stack.
    pub(crate) fn pop_pair(&mut self, t: X, t2: X) {
        self.push(0xa8c1_0000 | t2.at(10) | SP.at(5) | t.at(0));
    }

    /// Loads exclusively, with acquire.
    pub(crate) fn ldaxr(&mut self, t: X, base: X) {
        self.push(0xc85f_fc00 | base.at(5) | t.at(0));
    }

    /// Stores exclusively, with release; `status` is 0 if it was done.
    pub(crate) fn stlxr(&mut self, status: X, t: X, base: X) {
        self.push(0xc800_fc00 | status.at(16) | base.at(5) | t.at(0));
    }

    pub(crate) fn b(&mut self, to: Label) {
        self.branch(0x1400_0000, to, 26, 0);
    }

    pub(crate) fn bl(&mut self, to: Label) {
        self.branch(0x9400_0000, to, 26, 0);
    }

    pub(crate) fn b_if(&mut self, condition: Condition, to: Label) {
        self.branch(0x5400_0000 | condition as u32, to, 19, 5);
    }

    pub(crate) fn cbz(&mut self, t: X, to: Label) {
        self.branch(0xb400_0000 | t.at(0), to, 19, 5);
    }

    pub(crate) fn cbnz(&mut self, t: X, to: Label) {
        self.branch(0xb500_0000 | t.at(0), to, 19, 5);
    }

    pub(crate) fn ret(&mut self) {
        self.push(0xd65f_03c0);
    }

    pub(crate) fn eret(&mut self) {
        self.push(0xd69f_03e0);
    }

    pub(crate) fn mrs(&mut self, t: X, register: SystemRegister) {
        self.push(0xd520_0000 | u32::from(register.bits()) << 5 | t.at(0));
    }

    pub(crate) fn msr(&mut self, register: SystemRegister, t: X) {
        self.push(0xd500_0000 | u32::from(register.bits()) << 5 | t.at(0));
    }

    /// Closes interrupts (`DAIFSet`, I).
    pub(crate) fn close_interrupts(&mut self) {
        self.push(0xd503_42df);
    }

    /// Opens interrupts (`DAIFClr`, I).
    pub(crate) fn open_interrupts(&mut self) {
        self.push(0xd503_42ff);
    }

    pub(crate) fn isb(&mut self) {
        self.push(0xd503_3fdf);
    }

    /// Of the full system.
    pub(crate) fn dsb(&mut self) {
        self.push(0xd503_3f9f);
    }

    pub(crate) fn wfi(&mut self) {
        self.push(0xd503_207f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that LLVM's assembler makes of the text beside each.
    #[test]
    fn instructions_are_those_that_another_assembler_makes() {
        type Make = fn(&mut Assembler);
        let all: [(&str, Make, u32); 41] = [
            ("movz x3, #0", |a| a.mov_imm(X(3), 0), 0xd280_0003),
            ("movz x3, #0x1234", |a| a.mov_imm(X(3), 0x1234), 0xd282_4683),
            ("movz x3, #0x5678, lsl #16", |a| a.mov_imm(X(3), 0x5678 << 16), 0xd2aa_cf03),
            ("mov x1, x2", |a| a.mov(X(1), X(2)), 0xaa02_03e1),
            ("add x1, x2, #0xfff", |a| a.add_imm(X(1), X(2), 0xfff), 0x913f_fc41),
            ("sub sp, sp, #16", |a| a.sub_imm(SP, SP, 16), 0xd100_43ff),
            ("cmp x4, #512", |a| a.cmp_imm(X(4), 512), 0xf108_009f),
            ("cmp x4, x5", |a| a.cmp(X(4), X(5)), 0xeb05_009f),
            ("add x1, x2, x3", |a| a.add(X(1), X(2), X(3)), 0x8b03_0041),
            ("sub x1, x2, x3", |a| a.sub(X(1), X(2), X(3)), 0xcb03_0041),
            ("and x1, x2, x3", |a| a.and(X(1), X(2), X(3)), 0x8a03_0041),
            ("orr x1, x2, x3", |a| a.orr(X(1), X(2), X(3)), 0xaa03_0041),
            ("eor x1, x2, x3", |a| a.eor(X(1), X(2), X(3)), 0xca03_0041),
            ("mul x1, x2, x3", |a| a.mul(X(1), X(2), X(3)), 0x9b03_7c41),
            ("lsl x1, x2, x3", |a| a.lslv(X(1), X(2), X(3)), 0x9ac3_2041),
            ("lsl x1, x2, #12", |a| a.lsl(X(1), X(2), 12), 0xd374_cc41),
            ("lsl x1, x2, #0", |a| a.lsl(X(1), X(2), 0), 0xd340_fc41),
            ("lsr x1, x2, #29", |a| a.lsr(X(1), X(2), 29), 0xd35d_fc41),
            ("csel x1, x2, x3, lo", |a| a.csel(X(1), X(2), X(3), Condition::Lo), 0x9a83_3041),
            ("csel x1, x2, x3, eq", |a| a.csel(X(1), X(2), X(3), Condition::Eq), 0x9a83_0041),
            ("csel x1, x2, x3, ne", |a| a.csel(X(1), X(2), X(3), Condition::Ne), 0x9a83_1041),
            ("csel x1, x2, x3, hs", |a| a.csel(X(1), X(2), X(3), Condition::Hs), 0x9a83_2041),
            ("ldr x1, [x2, #32760]", |a| a.ldr(X(1), X(2), 32760), 0xf97f_fc41),
            ("str x1, [x2, #8]", |a| a.str(X(1), X(2), 8), 0xf900_0441),
            ("ldr w1, [x18, #0xf04]", |a| a.ldr_w(X(1), X(18), 0xf04), 0xb94f_0641),
            ("str wzr, [x18, #0xf3c]", |a| a.str_w(ZR, X(18), 0xf3c), 0xb90f_3e5f),
            ("ldr x1, [x2, x3, lsl #3]", |a| a.ldr_at(X(1), X(2), X(3)), 0xf863_7841),
            ("str x1, [x2, x3, lsl #3]", |a| a.str_at(X(1), X(2), X(3)), 0xf823_7841),
            ("stp x1, x30, [sp, #-16]!", |a| a.push_pair(X(1), X(30)), 0xa9bf_7be1),
            ("ldp x1, x30, [sp], #16", |a| a.pop_pair(X(1), X(30)), 0xa8c1_7be1),
            ("ldaxr x1, [x2]", |a| a.ldaxr(X(1), X(2)), 0xc85f_fc41),
            ("stlxr w3, x1, [x2]", |a| a.stlxr(X(3), X(1), X(2)), 0xc803_fc41),
            ("ret", Assembler::ret, 0xd65f_03c0),
            ("eret", Assembler::eret, 0xd69f_03e0),
            ("mrs x1, cntvct_el0", |a| a.mrs(X(1), SystemRegister::new(3, 3, 14, 0, 2)), 0xd53b_e041),
            ("msr vbar_el1, x2", |a| a.msr(SystemRegister::new(3, 0, 12, 0, 0), X(2)), 0xd518_c002),
            ("msr daifset, #2", Assembler::close_interrupts, 0xd503_42df),
            ("msr daifclr, #2", Assembler::open_interrupts, 0xd503_42ff),
            ("isb", Assembler::isb, 0xd503_3fdf),
            ("dsb sy", Assembler::dsb, 0xd503_3f9f),
            ("wfi", Assembler::wfi, 0xd503_207f),
        ];
        for (text, make, word) in all {
            let mut a = Assembler::default();
            make(&mut a);
            assert_eq!(a.finish().unwrap(), word.to_le_bytes(), "{text}");
        }
    }

    #[test]
    fn large_constants_take_a_move_and_keeps() {
        let mut a = Assembler::default();
        a.mov_imm(X(3), 0x9abc_0000_5678_1234);
        let words = [0xd282_4683_u32, 0xf2aa_cf03, 0xf2f3_5783];
        assert_eq!(a.finish().unwrap(), words.map(u32::to_le_bytes).concat());
    }

    /// `1: b 1b; bl 1b; b.ls 2f; cbz x1, 1b; 2: cbnz x1, 1b; b 1f` with `1` far behind the end.
    #[test]
    fn branches_go_both_ways() {
        let mut a = Assembler::default();
        let (start, end) = (a.here(), a.label());
        let far = a.label_at(0x100);
        a.b(start);
        a.bl(start);
        a.b_if(Condition::Ls, end);
        a.cbz(X(1), start);
        a.set(end);
        a.cbnz(X(1), start);
        a.b(far);
        a.fill_to(7);
        let words =
            [0x1400_0000_u32, 0x97ff_ffff, 0x5400_0049, 0xb4ff_ffa1, 0xb5ff_ff81, 0x1400_00fb, 0xd503_201f];
        assert_eq!(a.finish().unwrap(), words.map(u32::to_le_bytes).concat());
    }

    #[test]
    fn what_no_instruction_holds_is_an_error() {
        let wrong: [fn(&mut Assembler); 4] = [
            |a| a.add_imm(X(0), X(0), 4096),
            |a| a.ldr(X(0), X(1), 4),
            |a| a.ldr_w(X(0), X(1), 16384),
            |a| a.lsr(X(0), X(1), 64),
        ];
        for make in wrong {
            let mut a = Assembler::default();
            make(&mut a);
            assert_eq!(a.finish(), Err(AssemblerError::Operand(0)));
        }
        let mut a = Assembler::default();
        let nowhere = a.label();
        a.b(nowhere);
        assert_eq!(a.finish(), Err(AssemblerError::Branch(0)));
        let mut a = Assembler::default();
        let far = a.label_at(1 << 18);
        a.cbz(X(0), far);
        assert_eq!(a.finish(), Err(AssemblerError::Branch(0)));
    }
}
