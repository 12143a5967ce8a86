//! A body for every parser that reads bytes from outside: what the fuzzers run, and what stable
//! tests replay.
//!
//! A body is a plain function over bytes. It must not panic, hang or take memory that the bytes only
//! claim, and what it reads successfully must survive being written and read again. To add one:
//! 1. write the body in the module of its floor, and list it in [`BODIES`];
//! 2. give it at least one seed in [`seeds::all`], and write the seeds with
//!    `FERRY_BLESS=1 cargo test -p ferry-fuzz`;
//! 3. add `targets/NAME.rs` and its `[[bin]]` in `Cargo.toml`, like the others.
//!
//! The tests of this crate fail until all three are done.

#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "a panic is how a body says that it found something")]

pub mod contract;
pub mod guests;
pub mod journal;
pub mod mutate;
pub mod oneway;
pub mod protocol;
pub mod seeds;
pub mod state;

use ferry_protocol::message::{ToSource, ToTarget};
use ferry_state::{Pause, Resources, arm64, device, x86};

/// The crate whose macro makes a target of a body.
#[cfg(feature = "libfuzzer")]
pub use libfuzzer_sys;

/// A body: it takes any bytes.
pub type Body = fn(&[u8]);

/// Every body with its name, which is also its target's and its corpus folder's.
pub const BODIES: &[(&str, Body)] = &[
    ("guest_id", protocol::guest_id),
    ("frame", protocol::frame),
    ("page_head", protocol::page_head),
    ("to_target", protocol::message::<ToTarget>),
    ("to_source", protocol::message::<ToSource>),
    ("profile", contract::profile),
    ("import_kvm_registers", contract::import_kvm_registers),
    ("contract", contract::wire),
    ("contract_json", contract::json),
    ("journal", journal::journal),
    ("vmm_config", guests::vmm_config),
    ("sim_config", guests::sim_config),
    ("image", guests::image),
    ("kernel", guests::kernel),
    ("virtio_queue", guests::virtio_queue),
    ("one_way_file", oneway::file),
    ("section", state::section),
    ("x86_regs", state::part::<x86::Regs>),
    ("x86_sregs", state::part::<x86::Sregs>),
    ("x86_vcpu_events", state::part::<x86::VcpuEvents>),
    ("x86_mp_state", state::part::<x86::MpState>),
    ("x86_xcrs", state::part::<x86::Xcrs>),
    ("x86_xsave", state::part::<x86::Xsave>),
    ("x86_lapic", state::part::<x86::Lapic>),
    ("x86_debug_regs", state::part::<x86::DebugRegs>),
    ("x86_nested", state::part::<x86::Nested>),
    ("x86_msrs", state::part::<x86::Msrs>),
    ("x86_tsc_frequency", state::part::<x86::TscFrequency>),
    ("x86_tsc_offset", state::part::<x86::TscOffset>),
    ("x86_irqchip", state::part::<x86::Irqchip>),
    ("x86_pit", state::part::<x86::Pit>),
    ("x86_clock", state::part::<x86::Clock>),
    ("arm64_mp_state", state::part::<arm64::MpState>),
    ("arm64_vcpu_events", state::part::<arm64::VcpuEvents>),
    ("arm64_registers", state::part::<arm64::Registers>),
    ("arm64_gic_cpu_interface", state::part::<arm64::GicCpuInterface>),
    ("arm64_gic_redistributor", state::part::<arm64::GicRedistributor>),
    ("arm64_gic_lines", state::part::<arm64::GicLines>),
    ("arm64_gic_distributor", state::part::<arm64::GicDistributor>),
    ("arm64_gic_its", state::part::<arm64::GicIts>),
    ("arm64_counter", state::part::<arm64::Counter>),
    ("device_serial", state::part::<device::Serial>),
    ("device_virtio_block", state::part::<device::VirtioBlock>),
    ("device_virtio_net", state::part::<device::VirtioNet>),
    ("device_virtio_entropy", state::part::<device::VirtioEntropy>),
    ("device_virtio_console", state::part::<device::VirtioConsole>),
    ("machine_pause", state::part::<Pause>),
    ("machine_resources", state::part::<Resources>),
];

/// The body of that name.
pub fn body(name: &str) -> Option<Body> {
    BODIES.iter().find(|(known, _)| *known == name).map(|(_, body)| *body)
}

/// Makes a libFuzzer target of a body: the only line of a file in `targets/`.
#[macro_export]
macro_rules! target {
    ($body:path) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $body(bytes));
    };
}
