//! `ferry run --kernel`: what is no kernel has its sentence.

use rustix::fs::{FileType, Mode};

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
