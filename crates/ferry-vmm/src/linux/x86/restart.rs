//! What lies where a PC's processor begins after a reset: a few instructions that pull the reset line again.
//!
//! Linux on hardware-reduced ACPI expects EFI to restart the machine. Without EFI its next way is to go back to real mode and
//! to jump to the firmware (`BOOT_BIOS`), before it ever writes to ACPI's reset register. No firmware is here, and
//! what the jump found were zeros, on which it ran for ever. The page is guest memory and moves with the guest.
//!
//! Facts: the kernel's arch/x86/kernel/reboot.c (`native_machine_emergency_restart`), arch/x86/platform/efi/quirks.c
//! (`efi_reboot_required`) and arch/x86/realmode/rm/reboot.S (`ljmpw $0xffff, $0x0000`).

use vm_memory::GuestMemoryMmap;

use super::super::{LinuxError, write};
use crate::power::{RESET_CONTROL, RESET_VALUE};

/// Where the jump leads: segment 0xffff, offset 0.
pub(super) const ADDRESS: u64 = 0xf_fff0;

/// Bytes from there to the end of the first MiB.
const BYTES: usize = 16;

/// In 16-bit mode: `mov dx, RESET_CONTROL; mov al, RESET_VALUE; out dx, al; hlt; jmp` back to the `hlt`, which only an NMI
/// leaves.
fn code() -> [u8; BYTES] {
    let [low, high] = RESET_CONTROL.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd, 0, 0, 0, 0, 0, 0, 0]
}

/// Writes them.
pub(super) fn write_to(memory: &GuestMemoryMmap) -> Result<(), LinuxError> {
    write(memory, ADDRESS, &code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::{Wish, asked_by};

    #[test]
    fn the_instructions_write_what_restarts_the_machine_and_end_below_1_mib() {
        let code = code();
        let (port, value) = (u16::from_le_bytes([code[1], code[2]]), code[4]);
        assert_eq!(asked_by(port, &[value]), Some(Wish::Restart));
        assert_eq!((code[0], code[3], code[5]), (0xba, 0xb0, 0xee));
        // JMP at 7 is relative to 9, and leads to the HLT at 6.
        assert_eq!((code[6], code[7], 9_i8.wrapping_add(code[8].cast_signed())), (0xf4, 0xeb, 6));
        assert_eq!(ADDRESS + BYTES as u64, super::super::FIRMWARE_END);
    }
}
