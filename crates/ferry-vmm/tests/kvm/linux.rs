//! How a guest with a kernel begins, switches itself off and begins anew, with kernels of a few instructions.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_migrate::{Builder, Machine};
use ferry_vmm::{Birth, Board, Guest, GuestConfig, KvmBuilder, KvmGuest, Linux, Payload, Places, Wish};

use crate::common::{PATIENCE, custody, kvm_is_here, wait_until};
use crate::crossing::cross;

#[cfg(target_arch = "x86_64")]
#[path = "../support/bzimage.rs"]
mod bzimage;

const CONFIG: GuestConfig =
    GuestConfig { memory_bytes: 64 << 20, cpus: 2, payload: Payload::Linux, low_bytes: None };

/// A kernel that prints `K` and asks this of its machine.
#[cfg(target_arch = "x86_64")]
fn kernel(wish: Wish) -> Vec<u8> {
    let (port, value) = match wish {
        Wish::Off => (0x600_u32, 5 << 2 | 1 << 5),
        Wish::Restart => (0xcf9, 6),
    };
    // mov edx, 0x3f8; mov al, 'K'; out dx, al; mov edx, port; mov al, value; out dx, al; hlt.
    let mut program = vec![0xba, 0xf8, 3, 0, 0, 0xb0, b'K', 0xee, 0xba];
    program.extend(port.to_le_bytes());
    program.extend([0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]);
    bzimage::bzimage(&program)
}

/// The same.
#[cfg(target_arch = "aarch64")]
fn kernel(wish: Wish) -> Vec<u8> {
    // MOVZ W0, with 8 or 9: SYSTEM_OFF, SYSTEM_RESET.
    let function = match wish {
        Wish::Off => 0x5280_0100_u32,
        Wish::Restart => 0x5280_0120,
    };
    // B to behind the header, whose bytes 16 to 23 are the image's size.
    let mut words = vec![0x1400_0010_u32, 0, 0, 0, 0x1000, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0x644d_5241, 0];
    // MOVZ X1, #0xa00, LSL #16; MOVZ W0, 'K'; STRB W0, [X1, #0x3f8]; …; MOVK W0, #0x8400, LSL #16; HVC #0; B .
    words.extend([0xd2a1_4001, 0x5280_0960, 0x390f_e020, function, 0x72b0_8000, 0xd400_0002, 0x1400_0000]);
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn with(kernel: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), kernel).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn board(&self) -> Board {
        let kernel = self.path("kernel").display().to_string();
        Board { linux: Some(Linux { kernel, ..Linux::default() }), ..Board::default() }
    }

    fn output(&self) -> Arc<File> {
        Arc::new(File::options().create(true).append(true).open(self.path("out")).unwrap())
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    /// A guest that runs.
    fn guest(&self) -> KvmGuest {
        let board = self.board();
        let birth = Birth { board: Some(&board), ..Birth::plain(1) };
        let mut guest = ferry_vmm::create_on_kvm(&CONFIG, birth, None).unwrap();
        guest.devices().serial().write_to(vec![self.output()]);
        guest.resume(custody()).unwrap();
        guest
    }

    fn builder(&self) -> KvmBuilder {
        KvmBuilder::new().unwrap().with_serial_output(vec![self.output()])
    }
}

fn gone(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_guest_that_switches_itself_off_has_ended_and_says_so() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::with(&kernel(Wish::Off));
    let mut guest = place.guest();
    wait_until("it switches itself off", || guest.report().stopped.is_some());
    assert_eq!((guest.asked(), place.printed().as_str()), (Some(Wish::Off), "K"));
    assert_eq!(guest.report().stopped.unwrap(), "it switched itself off");
    assert!(guest.pause().unwrap_err().to_string().contains("it switched itself off"));
}

#[test]
fn a_restart_is_asked_for_until_there_is_a_new_machine_on_whatever_host() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::with(&kernel(Wish::Restart));
    let mut guest = place.guest();
    let asks = |guest: &KvmGuest| guest.asked() == Some(Wish::Restart);
    wait_until("it asks for a restart", || asks(&guest));
    assert_eq!((guest.report().stopped, place.printed().as_str()), (None, "K"));
    let unanswered = guest.verify(PATIENCE).unwrap_err().to_string();
    assert!(unanswered.starts_with("a guest with a kernel does not verify itself"), "{unanswered}");
    // It is being moved at this moment: nothing of it runs, here or there.
    guest = cross(guest);
    assert!(asks(&guest) && guest.runs());
    assert_eq!(place.printed(), "K");
    for times in 2..4 {
        let custody = guest.pause().unwrap();
        let description = guest.description();
        drop(guest);
        guest = place.builder().anew(&description).unwrap();
        assert!(!asks(&guest), "it is as at birth");
        guest.resume(custody).unwrap();
        wait_until("it asks again", || asks(&guest));
        assert_eq!(place.printed(), "K".repeat(times));
    }
    // The kernel is read again each time.
    let description = guest.description();
    drop(guest);
    gone(&place.path("kernel"));
    let error = place.builder().anew(&description).unwrap_err().to_string();
    assert!(error.contains("the kernel ") && error.contains("cannot be read: No such file"), "{error}");
}

/// Linux without EFI goes back to real mode and jumps there (arch/x86/realmode/rm/reboot.S).
#[cfg(target_arch = "x86_64")]
#[test]
fn a_jump_to_the_firmware_in_real_mode_is_a_restart() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::with(&kernel(Wish::Off));
    let board = place.board();
    let birth = Birth { board: Some(&board), ..Birth::plain(1) };
    let mut guest = ferry_vmm::create_on_kvm(&CONFIG, birth, None).unwrap();
    guest
        .with_vcpu(0, &mut |vcpu| {
            let mut sregs = vcpu.get_sregs().unwrap();
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x10, 0, 0, 0);
            for data in [&mut sregs.ss, &mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
                (data.selector, data.base, data.limit, data.type_) = (0, 0, 0xffff, 3);
                (data.db, data.l, data.g) = (0, 0, 0);
            }
            sregs.cs = sregs.ss;
            (sregs.cs.selector, sregs.cs.base, sregs.cs.type_) = (0xffff, 0xf_fff0, 11);
            (sregs.idt.base, sregs.idt.limit) = (0, 0x3ff);
            vcpu.set_sregs(&sregs).unwrap();
            let mut regs = vcpu.get_regs().unwrap();
            (regs.rip, regs.rsp, regs.rflags) = (0, 0x1000, 2);
            vcpu.set_regs(&regs).unwrap();
            Ok(())
        })
        .unwrap();
    guest.resume(custody()).unwrap();
    wait_until("it asks for a restart", || guest.asked() == Some(Wish::Restart));
    assert_eq!((guest.report().stopped, place.printed().as_str()), (None, ""));
}

#[test]
fn a_guest_whose_kernel_nobody_named_runs_and_does_not_restart() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::with(&kernel(Wish::Restart));
    let offered = place.guest().description();
    let verdict = place.builder().judge(&offered);
    assert!(!verdict.is_refusal());
    let notice = verdict.findings[0].to_string();
    assert!(notice.starts_with("kernel (VMM)") && notice.contains("`--kernel PATH`"), "{notice}");
    let its = place.builder().build(&offered).unwrap().description();
    let path = place.path("kernel").display().to_string();
    assert!(offered.config.windows(path.len()).any(|bytes| bytes == path.as_bytes()));
    assert!(!its.config.windows(path.len()).any(|bytes| bytes == path.as_bytes()), "its source's path");
    // Nor where it goes next, which is told nothing of a path that this host does not know.
    let told = Places { kernel: Some(path.clone()), ..Places::default() };
    assert_eq!(place.builder().with_places(Places::same()).build(&its).unwrap().description(), its);
    assert_eq!(place.builder().with_places(told).build(&its).unwrap().description(), offered);
    let error = place.builder().anew(&its).unwrap_err().to_string();
    assert!(error.contains("was not told where it has the guest's kernel"), "{error}");
    gone(&place.path("kernel"));
    let verdict = place.builder().with_places(Places::same()).judge(&offered);
    assert!(verdict.findings[0].target.contains("cannot be read: No such file"), "{verdict:?}");
    assert!(!verdict.is_refusal());
}

#[test]
fn a_file_that_is_no_kernel_makes_no_guest() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::with(b"#!/bin/sh\n");
    let board = place.board();
    let birth = Birth { board: Some(&board), ..Birth::plain(1) };
    let error = ferry_vmm::create_on_kvm(&CONFIG, birth, None).unwrap_err().to_string();
    assert!(error.contains("is no Linux kernel: give "), "{error}");
}
