//! `ferry run --kernel`: what is no kernel has its sentence; a kernel of a few instructions talks over the console.

use std::io::Write;
use std::process::Stdio;

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
}

/// A bzImage that echoes what comes over the serial port until a `q`, after which it is off.
#[cfg(target_arch = "x86_64")]
fn echo() -> Vec<u8> {
    let mut file = vec![0; 1024 + 0x200];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x202, b"HdrS\x0f\x02"),
        (0x211, &[1]),
        (0x214, &0x10_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 21, 1, 0]),
        (0x238, &2047_u32.to_le_bytes()),
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    // Until bit 0 of the line status is set: mov edx, 0x3fd; in al, dx; test al, 1; jz.
    file.extend([0xba, 0xfd, 3, 0, 0, 0xec, 0xa8, 1, 0x74, 0xf6]);
    // mov edx, 0x3f8; in al, dx; out dx, al; cmp al, 'q'; jnz to the start.
    file.extend([0xba, 0xf8, 3, 0, 0, 0xec, 0xee, 0x3c, b'q', 0x75, 0xeb]);
    // mov edx, 0x600; mov al, 0x34; out dx, al; hlt.
    file.extend([0xba, 0, 6, 0, 0, 0xb0, 0x34, 0xee, 0xf4]);
    file
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_typed_goes_to_the_guest_and_its_output_to_terminal_and_file() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("echo"), echo()).unwrap();
    let kernel = format!("--kernel={}", house.path("echo").display());
    let serial = format!("--serial={}", house.path("log").display());
    let words = ["run", "--backend=kvm", "--id=g", "--memory=64M", "--console", &kernel, &serial];
    let mut command = house.command(&words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // More than the port holds at once, and what a terminal would keep for itself.
    let typed = format!("{}\x03\x01x q", "0123456789".repeat(20));
    process.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {:?}", output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("guest `g` runs on kvm"), "{said}");
    assert_eq!(lines[1..], [format!("{typed}guest `g` switched itself off")], "{said}");
    assert_eq!(std::fs::read_to_string(house.path("log")).unwrap(), typed);
    house.json(&words).failed(2, &["--console would mix"]);
}
