//! Disagreements between verdict and truth that are known, each with its reason.
//!
//! One that does not occur any more fails the test as well as one that is not here.

/// What is known of a refusal where nothing shows: some bits of a register.
#[derive(Debug)]
pub(super) struct Unseen {
    pub(super) vendor: &'static str,
    /// As a finding names the register.
    pub(super) register: &'static str,
    /// Bits that nothing of what the guests do shows.
    pub(super) bits: u64,
    pub(super) reason: &'static str,
}

/// Refusals where nothing shows.
pub(super) const UNSEEN: &[Unseen] = &[
    Unseen {
        vendor: "amd",
        register: "CPUID.0x80000008.0:EBX",
        bits: 1 << 25,
        reason: "VIRT_SSBD: before the newest kernel a guest keeps its MSR where it has no effect",
    },
    Unseen {
        vendor: "amd",
        register: "CPUID.0x8000000a.0:EDX",
        bits: 1 << 5 | 1 << 6 | 1 << 16 | 1 << 28,
        reason: "features of SVM: only a guest of the guest would show them",
    },
    Unseen {
        vendor: "amd",
        register: "CPUID.0x80000021.0:EAX",
        bits: 1 << 2 | 1 << 9 | 1 << 17,
        reason: "LFENCE that serializes, no SMM_CTL, CPUID that may fault: the processor or KVM has them, and the kernel \
                 does not say so yet, or no payload asks",
    },
    Unseen {
        vendor: "amd",
        register: "CPUID.7.1:EAX",
        bits: 1 << 7 | 1 << 10 | 1 << 11 | 1 << 12,
        reason: "instructions and fast strings that the processor has, though the kernel does not say so yet",
    },
    Unseen {
        vendor: "amd",
        register: "MSR 0x10a",
        bits: 1 << 62,
        reason: "an immunity that the processor has or has not, whatever the kernel knows of it; the polarity of such \
                 bits comes with the registry of features",
    },
    Unseen {
        vendor: "amd",
        register: "MSR 0xce",
        bits: 1 << 31,
        reason: "CPUID may fault for every guest of KVM; only the newest kernel lists the MSR that says so",
    },
];

/// What is known of an accept, or of a refusal after the offer, where something shows.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) vendor: &'static str,
    /// Whether the guest was accepted for good; else it was refused after the offer.
    pub(super) accepted: bool,
    /// How what shows begins.
    pub(super) begins: &'static str,
    pub(super) reason: &'static str,
}

/// Guests that were let in at the offer though something shows.
pub(super) const SHOWN: &[Shown] = &[
    Shown {
        vendor: "arm64",
        accepted: true,
        begins: "KVM_REG_ARM_STD_HYP_BMAP (0x6030000000160001): refused (KVM does not list it)",
        reason: "the service of stolen time is older than the register that says so: where KVM does not list it, \
                 guests have it all the same",
    },
    Shown {
        vendor: "arm64",
        accepted: true,
        begins: "in the guest: CTR_EL0: 0x000000008444c004 at birth, 0x000000009444c004 now",
        reason: "before 6.3 a guest reads the processor's own CTR_EL0, and not what KVM says of it; from there on it reads \
                 that its caches need less care, which takes nothing from it",
    },
];
