//! The nested state of a vCPU: what KVM keeps for a guest that is a hypervisor itself.
//!
//! From `struct kvm_nested_state` of the kernel's arch/x86/include/uapi/asm/kvm.h and
//! Documentation/virt/kvm/api.rst, 4.114. A header of 128 bytes, then on VMX up to two pages (vmcs12
//! and its shadow), on SVM up to one (control and save area). It crosses as KVM gave it.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The header, which every nested state has: `sizeof(struct kvm_nested_state)`.
pub const NESTED_HEADER_BYTES: usize = 128;

/// The longest nested state that the kernel defines: the header and the two pages of VMX.
pub const MAX_NESTED_BYTES: usize = NESTED_HEADER_BYTES + 2 * 4096;

/// The nested state of one vCPU.
///
/// A header alone may say much: VMX operation that was entered without a current VMCS, or on SVM
/// interrupts that are held back (GIF). So the length says nothing about whether it matters; the
/// needed-marks do.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Nested {
    /// `KVM_STATE_NESTED_FORMAT_…`: 0 for VMX, 1 for SVM.
    #[n(0)]
    format: u16,
    /// `KVM_STATE_NESTED_…`: guest mode (1), entry pending (2), enlightened VMCS (4), monitor trap
    /// pending (8), GIF (0x100).
    #[n(1)]
    flags: u16,
    /// Bytes of the whole.
    #[n(2)]
    size: u32,
    /// The whole as KVM gave it, [`NESTED_HEADER_BYTES`] to [`MAX_NESTED_BYTES`] long. It begins with
    /// the flags, the format and the size.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    data: Vec<u8>,
}

impl Nested {
    /// A nested state as KVM gave it: exactly as many bytes as its header says. `None` if it is not
    /// that, or longer than the kernel defines.
    pub fn from_bytes(data: Vec<u8>) -> Option<Self> {
        let (flags, format, size) = header(&data)?;
        let nested = Self { format, flags, size, data };
        nested.check().is_ok().then_some(nested)
    }

    /// `KVM_STATE_NESTED_FORMAT_…`: 0 for VMX, 1 for SVM.
    pub fn format(&self) -> u16 {
        self.format
    }

    /// `KVM_STATE_NESTED_…`.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// The whole, as KVM takes it.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// Flags, format and size at the start of a nested state.
fn header(data: &[u8]) -> Option<(u16, u16, u32)> {
    let (flags, rest) = data.split_first_chunk()?;
    let (format, rest) = rest.split_first_chunk()?;
    let size = rest.first_chunk()?;
    Some((u16::from_le_bytes(*flags), u16::from_le_bytes(*format), u32::from_le_bytes(*size)))
}

impl Part for Nested {
    const NAME: &'static str = "x86.nested";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3]);

    fn check(&self) -> Result<(), String> {
        let length = self.data.len();
        if !(NESTED_HEADER_BYTES..=MAX_NESTED_BYTES).contains(&length) {
            return Err(format!(
                "a nested state of {length} bytes; it has {NESTED_HEADER_BYTES} to {MAX_NESTED_BYTES}"
            ));
        }
        if usize::try_from(self.size) != Ok(length) {
            return Err(format!("a nested state of {length} bytes that says it has {}", self.size));
        }
        if header(&self.data) != Some((self.flags, self.format, self.size)) {
            return Err("a nested state whose header contradicts it".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Section, StateError};

    fn vmx(size: u32, vmxon_pa: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(size).unwrap()];
        data[4..8].copy_from_slice(&size.to_le_bytes());
        data[8..16].copy_from_slice(&vmxon_pa.to_le_bytes());
        data[16..24].fill(0xff);
        data
    }

    #[test]
    fn a_header_alone_is_a_state_and_differs_from_none() {
        let fresh = Nested::from_bytes(vmx(128, u64::MAX)).unwrap();
        let entered = Nested::from_bytes(vmx(128, 0x1000)).unwrap();
        let section = Section::of(&entered, 0, Some(&fresh)).unwrap();
        assert_eq!(section.needed, [3]);
        assert_eq!(section.read::<Nested>().unwrap(), entered);
        assert!(Section::of(&fresh, 0, Some(&fresh)).unwrap().needed.is_empty());
    }

    #[test]
    fn lengths_and_headers_are_bounded_and_agree() {
        assert!(Nested::from_bytes(vmx(8320, 0)).is_some());
        assert!(Nested::from_bytes(vmx(8321, 0)).is_none());
        assert!(Nested::from_bytes(vmx(127, 0)).is_none());
        assert!(Nested::from_bytes(vec![0; 3]).is_none());
        assert!(Nested::from_bytes(vec![0; 128]).is_none(), "says it has no bytes");
        let mut longer = vmx(128, 0);
        longer.push(0);
        assert!(Nested::from_bytes(longer).is_none());

        let good = Nested::from_bytes(vmx(128, 0)).unwrap();
        for bad in [
            Nested { flags: 1, ..good.clone() },
            Nested { format: 1, ..good.clone() },
            Nested { size: 4224, ..good.clone() },
        ] {
            let section = Section::of(&bad, 0, None);
            let error = section.and_then(|section| section.read::<Nested>()).unwrap_err();
            assert!(matches!(error, StateError::Invalid { .. }), "{error}");
        }
    }
}
