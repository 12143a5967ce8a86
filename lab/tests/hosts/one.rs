//! What one host does.

use serde_json::Value;

use super::{STEP_MAX, ok, ready};

#[test]
fn a_host_has_a_real_kvm_whose_profile_ferry_reads() {
    let Some(lab) = ready(&["amd/6.12/EPYC-Milan"]) else { return };
    let mut host = lab.lab.boot(&lab.hosts[0], &lab.job).unwrap();
    let text = ok(&mut host, "ferry probe --output json");
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains("kvm_amd") && text.contains("6.12"), "{text}");
    assert!(profile.is_object());

    // A status, both outputs and files come back as they are, bytes that no text has included.
    let script = r"printf 'a\0b'; echo e >&2; mkdir d; printf 'x\0\377' >d/file; exit 7";
    let output = host.run(script, STEP_MAX).unwrap();
    assert_eq!((output.status, &output.stdout[..], &output.stderr[..]), (7, &b"a\0b"[..], &b"e\n"[..]));
    let folder = tempfile::tempdir().unwrap();
    host.fetch("/files", folder.path(), STEP_MAX).unwrap();
    assert_eq!(std::fs::read(folder.path().join("d/file")).unwrap(), b"x\0\xff");
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
