//! Capabilities: each architecture has its list of those that bear on what a guest sees, or on how it is run
//! and moved.
//!
//! Names and numbers from linux/kvm.h; values by `KVM_CHECK_EXTENSION` (Documentation/virt/kvm/api.rst,
//! 4.4), on `/dev/kvm` and on a VM, which may know more.

use ferry_contract::{Capability, Extra};
use kvm_ioctls::{Kvm, VmFd};

/// Pairs each constant of kvm-bindings with its name.
macro_rules! capabilities {
    ($($name:ident,)*) => { [$((stringify!($name), kvm_bindings::$name)),*] };
}
pub(super) use capabilities;

/// Each capability of the list (names and numbers, ascending by number) with what KVM says of it.
pub(super) fn all(list: &[(&str, u32)], kvm: &Kvm, vm: &VmFd) -> Vec<Capability> {
    let ask = |(name, number): &(&str, u32)| Capability {
        number: *number,
        name: (*name).to_owned(),
        system: kvm.check_extension_raw((*number).into()).into(),
        vm: vm.check_extension_raw((*number).into()).into(),
        extra: Extra::new(),
    };
    list.iter().map(ask).collect()
}

/// What a VM says of a capability; 0 if it is absent.
pub(super) fn check(vm: &VmFd, capability: u32) -> u64 {
    u64::try_from(vm.check_extension_raw(capability.into())).unwrap_or(0)
}
