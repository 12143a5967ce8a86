//! What the tests share: houses of processes, the journal of runs, peers that misbehave.

#[cfg(target_arch = "x86_64")]
pub(crate) mod boot;
pub(crate) mod house;
pub(crate) mod journal;
pub(crate) mod links;
pub(crate) mod peers;
pub(crate) mod process;

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that takes far less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that cannot be waited for.
const LOOK: Duration = Duration::from_millis(3);

/// Cases of one test that are under way at once: they wait more than they work.
const AT_ONCE: usize = 3;

/// Makes of each function, which takes the name of a backend, a test on each backend.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sim {
            $(#[test] fn $name() { super::$name("sim"); })*
        }
        mod kvm {
            $(#[test] fn $name() {
                if crate::support::kvm_is_here() {
                    super::$name("kvm");
                }
            })*
        }
    };
}

/// Whether KVM can be used; if not, says that the test was skipped.
pub(crate) fn kvm_is_here() -> bool {
    match ferry_vmm::Backend::Kvm.choose() {
        Ok(_) => true,
        Err(error) => {
            static SAID: Once = Once::new();
            SAID.call_once(|| skipped(&format!("all tests on KVM: {error}")));
            false
        }
    }
}

/// Says what is skipped and why, past the harness, which hides what a passing test prints.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// Runs every case, a few at once.
pub(crate) fn each<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(case);
                }
            });
        }
    });
}

/// Waits until something is so that nothing else tells.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not so within {PATIENCE:?}");
        std::thread::park_timeout(LOOK);
    }
}

/// Lets a wait of another process run out.
pub(crate) fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
