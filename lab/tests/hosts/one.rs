//! What one host does.

use std::time::Duration;

use serde_json::Value;

use super::{STEP_MAX, all, ok, ready};

/// Files into a host or out of it, under Bochs, too.
const FILES_MAX: Duration = Duration::from_secs(300);

#[test]
fn a_host_has_a_real_kvm_whose_profile_ferry_reads() {
    let Some(lab) = ready(&["amd/6.12/EPYC-Milan"]) else { return };
    let mut host = lab.lab.boot(&lab.hosts[0], &lab.job).unwrap();
    let text = ok(&mut host, "ferry probe --output json");
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains("kvm_amd") && text.contains("6.12"), "{text}");
    // What a guest is told of CPUID and the TSC is what it sees: not so everywhere (`kvm_pvm`).
    for settings in ["cpuid_settings_reach", "tsc_settings_reach"] {
        assert_eq!(profile["probe_guest"][settings], true, "{settings}");
    }

    // A status, both outputs and files come back as they are, bytes that no text has included.
    let script = r"printf 'a\0b'; echo e >&2; mkdir d; printf 'x\0\377' >d/file; exit 7";
    let output = host.run(script, STEP_MAX).unwrap();
    assert_eq!((output.status, &output.stdout[..], &output.stderr[..]), (7, &b"a\0b"[..], &b"e\n"[..]));
    let folder = tempfile::tempdir().unwrap();
    host.fetch("/files", folder.path(), STEP_MAX).unwrap();
    assert_eq!(std::fs::read(folder.path().join("d/file")).unwrap(), b"x\0\xff");
}

/// Gives a host files at boot and while it runs, and takes them back.
fn files_go_in_and_out(name: &str) {
    let Some(lab) = ready(&[name]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Unlike bytes, in whole blocks and not.
    let bytes: Vec<u8> =
        (0..3 << 20_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for part in ["early/a/b", "late/c"] {
        std::fs::create_dir_all(at(part)).unwrap();
        std::fs::write(at(part).join("file"), &bytes).unwrap();
        std::fs::write(at(part).join("short one"), part).unwrap();
    }
    let job = lab.job.clone().files_in(&at("early")).unwrap();
    let mut host = lab.lab.boot(&lab.hosts[0], &job).unwrap();
    assert_eq!(ok(&mut host, "cat 'a/b/short one'"), "early/a/b");
    host.put(&at("late"), "/files/it's late", FILES_MAX).unwrap();
    ok(&mut host, "cmp a/b/file \"it's late/c/file\" && echo done >\"it's late/c/short one\"");
    host.fetch("/files", &at("back"), FILES_MAX).unwrap();
    assert_eq!(std::fs::read(at("back/it's late/c/short one")).unwrap(), b"done\n");
    assert!(std::fs::read(at("back/it's late/c/file")).unwrap() == bytes);
    // A smaller archive after a larger one, and a folder that is not there.
    std::fs::remove_file(at("late/c/file")).unwrap();
    host.put(&at("late"), "/again", FILES_MAX).unwrap();
    assert_eq!(ok(&mut host, "cd /again && find . -type f -exec cat {} +"), "late/c");
    let error = host.fetch("/nowhere", &at("nothing"), FILES_MAX).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
    // Where they cannot be put, the host says so and goes on.
    assert!(host.put(&at("late"), "/proc/x", FILES_MAX).is_err());
    assert!(host.put(&at("early"), "/sys/kernel", FILES_MAX).is_err());
    ok(&mut host, "true");
}

#[test]
fn files_go_into_a_host_and_out_of_it() {
    files_go_in_and_out("amd/5.10/EPYC");
}

#[test]
fn files_go_into_an_intel_host_and_out_of_it() {
    if all(&["intel/6.12/corei5_lynnfield_750"]).is_some() {
        files_go_in_and_out("intel/6.12/corei5_lynnfield_750");
    }
}

#[test]
fn a_host_that_panics_says_so_with_the_last_of_its_console() {
    let Some(lab) = ready(&["amd/5.10/EPYC"]) else { return };
    let mut host = lab.lab.boot(&lab.hosts[0], &lab.job).unwrap();
    let error =
        host.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", STEP_MAX).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("ended by itself") && said.contains("amd/5.10/EPYC"), "{said}");
    assert!(said.contains("Kernel panic"), "{said}");
    assert!(host.run("true", STEP_MAX).is_err());
}
