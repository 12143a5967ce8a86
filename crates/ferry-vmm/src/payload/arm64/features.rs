//! `features` in code of arm64: what the identification registers show, at birth and ever after.
//!
//! Each vCPU has a table of its own at the start of its share: for each register what was in it at birth, and what is
//! now. The registers are those of the identification space, and what else says what the processor is: the caches' lines,
//! the block that `DC ZVA` clears, the counter's frequency, which caches there are and what each is like. Facts: Arm's DDI
//! 0487, D18.2 (op0 3, op1 0, `CRn` 0: `CRm` 1 to 7 read as zero where there is no register); D24.2, `CLIDR_EL1` (three
//! bits a level), `CSSELR_EL1` and `CCSIDR_EL1` (which is not to be read of a cache that is not there: its entry is 0).

use ferry_contract::arm64::{RegisterId, SystemRegister};

use super::{FAULTS, WORKING_SET, answer, if_asked, out, report, turn_over};
use crate::a64::{Assembler, Condition, X};
use crate::ports;

/// Microseconds between two rounds of all registers.
pub(super) const WAIT_US: u32 = 20_000;

/// Bytes of an entry: the value at birth, the value now.
const ENTRY_BYTES: u16 = 16;

/// Registers beside those of `CRm` 1 to 7: `MIDR_EL1`, `MPIDR_EL1`, `REVIDR_EL1`, `CTR_EL0`, `DCZID_EL0`, `CNTFRQ_EL0`,
/// `CLIDR_EL1`, `AIDR_EL1`.
const SINGLE: [SystemRegister; 8] = [
    SystemRegister::new(3, 0, 0, 0, 0),
    SystemRegister::new(3, 0, 0, 0, 5),
    SystemRegister::new(3, 0, 0, 0, 6),
    SystemRegister::new(3, 3, 0, 0, 1),
    SystemRegister::new(3, 3, 0, 0, 7),
    SystemRegister::new(3, 3, 14, 0, 0),
    SystemRegister::CLIDR_EL1,
    SystemRegister::new(3, 1, 0, 0, 7),
];

/// Which cache is asked for, and what it is like.
const CSSELR_EL1: SystemRegister = SystemRegister::new(3, 2, 0, 0, 0);
const CCSIDR_EL1: SystemRegister = SystemRegister::new(3, 1, 0, 0, 0);

/// Selectors of caches: seven levels, bit 0 for instructions.
const CACHES: u16 = 14;

/// KVM's numbers of what a cache is like, without its selector.
const CACHE: u32 = 0x11_0000;

// Whether birth is over, how many registers there are; what a round finds in one and which it is.
const LATER: X = X(26);
const COUNT: X = X(27);
const NOW: X = X(1);
const WHICH: X = X(2);
const ENTRY: X = X(3);

fn registers() -> impl Iterator<Item = SystemRegister> {
    let space = (1..8).flat_map(|crm| (0..8).map(move |op2| SystemRegister::new(3, 0, 0, crm, op2)));
    SINGLE.into_iter().chain(space)
}

/// How many entries a table has.
pub(super) fn entries() -> u64 {
    registers().count() as u64 + u64::from(CACHES)
}

/// A table as it is before birth.
pub(super) fn table() -> Vec<u8> {
    vec![0; (registers().count() + usize::from(CACHES)) * usize::from(ENTRY_BYTES)]
}

/// What a fault says: of a register by KVM's number.
pub(super) fn fault(register: u32, expected: u64, found: u64) -> String {
    let name =
        RegisterId::from_key(register, 8).map_or_else(|| "unknown register".to_owned(), RegisterId::name);
    format!("{name}: {expected:#018x} at birth, {found:#018x} now")
}

/// The program. FAULTS are those of all rounds.
pub(super) fn program(a: &mut Assembler) {
    let (round, look) = (a.label(), a.label());
    a.mov_imm(LATER, 0);
    a.mov_imm(FAULTS, 0);
    a.mov_imm(COUNT, entries());
    let turn = a.here();
    a.bl(round);
    if_asked(a, |a| {
        // Once more, so that the answer is of now.
        a.bl(round);
        answer(a, COUNT, FAULTS);
    });
    turn_over(a);
    a.b(turn);

    // Subroutine: reads all registers, and notes them at birth or compares them.
    a.set(round);
    a.push_pair(X(29), X(30));
    a.mov(ENTRY, WORKING_SET);
    for register in registers() {
        a.mrs(NOW, register);
        a.mov_imm(WHICH, RegisterId::system(register).key().into());
        a.bl(look);
    }
    for selector in 0..CACHES {
        cache(a, selector);
        a.mov_imm(WHICH, (CACHE | u32::from(selector)).into());
        a.bl(look);
    }
    a.mov_imm(LATER, 1);
    out(a, ports::PAGES_CHECKED, COUNT);
    a.pop_pair(X(29), X(30));
    a.ret();

    // Subroutine: one register, and on to the next entry.
    let (compare, done) = (a.label(), a.label());
    a.set(look);
    a.str(NOW, ENTRY, 8);
    a.cbnz(LATER, compare);
    a.str(NOW, ENTRY, 0);
    a.set(compare);
    a.ldr(X(4), ENTRY, 0);
    a.cmp(X(4), NOW);
    a.b_if(Condition::Eq, done);
    report(a, WHICH, X(4), NOW);
    a.set(done);
    a.add_imm(ENTRY, ENTRY, ENTRY_BYTES.into());
    a.ret();
}

/// What a cache is like, or 0 if there is none.
fn cache(a: &mut Assembler, selector: u16) {
    let (there, done) = (a.label(), a.label());
    // Kinds of caches of a level: instructions alone, data alone, both apart, both in one.
    let kinds: &[u64] = if selector & 1 == 1 { &[1, 3] } else { &[2, 3, 4] };
    a.mrs(X(4), SystemRegister::CLIDR_EL1);
    a.lsr(X(4), X(4), (3 * (selector >> 1)).into());
    a.mov_imm(X(5), 7);
    a.and(X(4), X(4), X(5));
    a.mov_imm(NOW, 0);
    for kind in kinds {
        a.cmp_imm(X(4), *kind);
        a.b_if(Condition::Eq, there);
    }
    a.b(done);
    a.set(there);
    a.mov_imm(X(4), selector.into());
    a.msr(CSSELR_EL1, X(4));
    a.isb();
    a.mrs(NOW, CCSIDR_EL1);
    a.set(done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_register_once_and_a_fault_names_it() {
        let mut keys: Vec<u32> = registers().map(|register| RegisterId::system(register).key()).collect();
        keys.extend((0..CACHES).map(|selector| CACHE | u32::from(selector)));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len() as u64, entries());
        let pfr0 = RegisterId::system(SystemRegister::new(3, 0, 0, 4, 0)).key();
        assert_eq!(
            fault(pfr0, 0x11, 0x1111),
            "ID_AA64PFR0_EL1: 0x0000000000000011 at birth, 0x0000000000001111 now"
        );
        assert!(fault(CACHE | 2, 0, 1).starts_with("CCSIDR_EL1[2]: 0x"));
    }
}
