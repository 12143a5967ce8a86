//! `ferry run --kernel`: what is no kernel has its sentence.

use rustix::fs::{FileType, Mode};

#[cfg(target_arch = "x86_64")]
use crate::support::boot::{ECHO, kernel};
use crate::support::house::House;
use crate::support::kvm_is_here;

#[test]
fn a_kernel_that_is_none_is_one_sentence() {
    let house = House::new("kvm");
    let at = |name: &str| house.path(name).display().to_string();
    std::fs::write(house.path("script"), "#!/bin/sh\n").unwrap();
    std::fs::write(house.path("packed"), b"\x1f\x8b\x08").unwrap();
    std::fs::write(house.path("empty"), "").unwrap();
    let run = |words: &[&str]| house.json(&[&["run", "--memory=64M"], words].concat());
    let kernel = format!("--kernel={}", at("script"));
    let long = format!("--cmdline={}", "x".repeat(2048));
    run(&[&kernel, "--payload=idle"]).failed(2, &["--payload", "--kernel"]);
    run(&["--initramfs=i"]).failed(2, &["--kernel"]);
    run(&["--cmdline=quiet"]).failed(2, &["--kernel"]);
    run(&[&kernel, &long]).failed(2, &["a command line of 2048 bytes", "2047"]);
    run(&["--backend=sim", &kernel]).failed(1, &["a kernel needs KVM"]);
    if !kvm_is_here() {
        return;
    }
    let with = |name: &str| run(&["--backend=kvm", &format!("--kernel={}", at(name))]);
    with("script").failed(1, &["/script is no Linux kernel: give "]);
    with("packed").failed(1, &["/packed is compressed (gzip)", "gzip -dc"]);
    with("empty").failed(1, &["/empty is no file with something in it"]);
    with("nothing").failed(1, &["the kernel", "/nothing cannot be read: No such file"]);
    with(".").failed(1, &["is no file with something in it"]);
    let made = rustix::fs::mknodat(rustix::fs::CWD, house.path("fifo"), FileType::Fifo, Mode::RUSR, 0);
    made.unwrap();
    with("fifo").failed(1, &["/fifo is no file with something in it"]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_kernel_that_the_target_was_not_told_is_a_notice() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("echo"), kernel(ECHO)).unwrap();
    let kernel = format!("--kernel={}", house.path("echo").display());
    let mut command = house.command(&["run", "--backend=kvm", "--id=g", "--memory=64M", &kernel]);
    command.args(["--output=json", "--die-with-parent"]);
    let mut from = house.start(command).ready("running");
    let initramfs = format!("--initramfs={}", house.path("echo").display());
    let target = house.receiver(&[&kernel, &initramfs]);
    house.migrate("g", &target.listen).failed(3, &["initramfs", "leave `--initramfs` out"]);
    for flags in [&[&kernel[..]][..], &[], &[&kernel]] {
        let to = house.receiver(flags);
        let report = house.migrate("g", &to.listen).document();
        assert_eq!(report["outcome"], "moved", "{report}");
        let notices = report["findings"].as_array().unwrap();
        let missed = notices.iter().any(|finding| finding["subject"] == "kernel");
        assert_eq!(missed, flags.is_empty(), "{report}");
        from = to;
    }
    from.await_state("running");
}
