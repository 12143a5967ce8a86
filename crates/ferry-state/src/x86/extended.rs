//! Extended state: the control register XCR0 and the registers that XSAVE saves.
//!
//! From `struct kvm_xcrs` and `struct kvm_xsave` of the kernel's arch/x86/include/uapi/asm/kvm.h; the
//! layout of an XSAVE area is in the Intel SDM, volume 1, chapter 13.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The most extended control registers (`KVM_MAX_XCRS`).
pub const MAX_XCRS: usize = 16;

/// The shortest XSAVE area: the legacy region (512 bytes) and the header (64).
pub const MIN_XSAVE_BYTES: usize = 576;

/// The longest XSAVE area taken; with every component of today it has 11 KiB.
pub const MAX_XSAVE_BYTES: usize = 64 * 1024;

/// One extended control register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Xcr {
    /// Its number; XCR0 is the only one so far.
    #[n(0)]
    pub xcr: u32,
    /// Its value.
    #[n(1)]
    pub value: u64,
}

/// The extended control registers of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Xcrs {
    /// Reserved by KVM, zero so far.
    #[n(0)]
    pub flags: u32,
    /// The registers that the host has, at most [`MAX_XCRS`].
    #[n(1)]
    pub xcrs: Vec<Xcr>,
}

impl Part for Xcrs {
    const NAME: &'static str = "x86.xcrs";
    const FIELDS: Fields = Fields::These(&[0, 1]);

    fn check(&self) -> Result<(), String> {
        if self.xcrs.len() <= MAX_XCRS {
            Ok(())
        } else {
            Err(format!("{} extended control registers, the bound is {MAX_XCRS}", self.xcrs.len()))
        }
    }
}

/// The XSAVE area of one vCPU, in the standard (not compacted) format.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Xsave {
    /// The area, [`MIN_XSAVE_BYTES`] to [`MAX_XSAVE_BYTES`] long.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub region: Vec<u8>,
}

impl Part for Xsave {
    const NAME: &'static str = "x86.xsave";
    const FIELDS: Fields = Fields::These(&[0]);

    fn check(&self) -> Result<(), String> {
        if (MIN_XSAVE_BYTES..=MAX_XSAVE_BYTES).contains(&self.region.len()) {
            Ok(())
        } else {
            Err(format!(
                "an XSAVE area of {} bytes; it has {MIN_XSAVE_BYTES} to {MAX_XSAVE_BYTES}",
                self.region.len()
            ))
        }
    }
}
