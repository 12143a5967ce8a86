//! The command line of QEMU for an AMD or an arm64 host.
//!
//! `q35` or `virt` with nothing else in it: one processor with SVM or EL2, one virtio port for each stream,
//! and a virtio network card if there is another host to talk to. The foreign QEMU runs through its own C library's
//! loader. `-no-reboot` with `panic=-1` makes a kernel's panic the emulator's end.

use std::path::Path;
use std::process::Command;

use crate::host::Architecture;
use crate::process::tied;

/// The folder of a Debian architecture's libraries, and its loader.
pub(crate) const fn loader() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") {
        ("usr/lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1")
    } else {
        ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    }
}

/// One end of the network between two hosts.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// The Unix socket that both ends know.
    pub(crate) socket: std::path::PathBuf,
    /// Whether this end makes it.
    pub(crate) listens: bool,
    /// This host's number in the network.
    pub(crate) number: u8,
}

impl Network {
    /// The address of a host of that number.
    pub(crate) fn address(number: u8) -> String {
        format!("10.77.0.{number}")
    }
}

/// What differs between two starts.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// Where QEMU was unpacked.
    pub(crate) emulator: &'a Path,
    /// The host's architecture.
    pub(crate) architecture: Architecture,
    /// The processor's model.
    pub(crate) model: &'a str,
    /// The kernel's image.
    pub(crate) kernel: &'a Path,
    /// Parameters of KVM where it is built into the kernel, as `name=value`.
    pub(crate) kvm_parameters: &'a [String],
    /// The folder of this run, with `root`, and where sockets and the console's log go.
    pub(crate) folder: &'a Path,
    /// The word in the streams' marks; none for an interactive shell.
    pub(crate) mark: Option<&'a str>,
    /// The memory of the host in MiB.
    pub(crate) memory_mib: u32,
    /// The network.
    pub(crate) network: Option<&'a Network>,
}

impl Boot<'_> {
    /// The command line.
    pub(crate) fn command(&self) -> Command {
        let at = |path: &str| self.emulator.join(path);
        let (libraries, loader) = loader();
        let mut command = tied(at(loader).as_os_str());
        command.arg("--library-path").arg(at(libraries)).arg(at(&program(self.architecture)));
        for folder in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(at(folder));
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        let machine = match self.architecture {
            Architecture::X86_64 => "q35",
            Architecture::Arm64 => "virt,virtualization=on,gic-version=3",
        };
        command.args(["-accel", "tcg,thread=multi", "-machine", machine, "-smp", "1"]);
        command.args(["-cpu", cpu(self.architecture, self.model), "-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.folder.join("root"));
        command.args(["-append", &self.kernel_line()]);
        // Keys and addresses must not wait for randomness that an idle machine does not gather.
        command.args([
            "-object",
            "rng-random,id=random,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=random",
        ]);
        if self.mark.is_some() {
            command.arg("-serial").arg(format!("file:{}", self.folder.join("console").display()));
            command.args(["-device", "virtio-serial-pci"]);
            for port in ["out", "err"] {
                let socket = self.folder.join(port);
                command.arg("-chardev").arg(format!("socket,id={port},path={}", socket.display()));
                command.arg("-device").arg(format!("virtserialport,chardev={port},name={port}"));
            }
        } else {
            command.args(["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"]);
        }
        if let Some(network) = self.network {
            let role = if network.listens { "server=on" } else { "server=off,reconnect-ms=100" };
            let path = network.socket.display();
            command.arg("-netdev").arg(format!("stream,id=net,{role},addr.type=unix,addr.path={path}"));
            let mac = format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:{:02x},romfile=", network.number);
            command.args(["-device", &mac]);
        }
        command
    }

    /// What the kernel's line says to a KVM that is built in. `max` is the model that can nest
    /// (Documentation/admin-guide/kernel-parameters.txt, `kvm-arm.mode`).
    fn built_in_kvm(&self) -> String {
        let nested = if self.model == "max" { " kvm-arm.mode=nested" } else { "" };
        let parameters = self.kvm_parameters.iter().map(|parameter| format!(" kvm.{parameter}"));
        parameters.fold(nested.to_owned(), |line, parameter| line + &parameter)
    }

    fn kernel_line(&self) -> String {
        let what = self.mark.map_or_else(|| "lab.mode=shell".to_owned(), |mark| format!("lab.mark={mark}"));
        let address = self.network.map(|network| Network::address(network.number));
        let address = address.map(|address| format!(" lab.address={address}")).unwrap_or_default();
        let (console, own) = match self.architecture {
            // On a loaded machine an emulated timer may come too late for the kernel, which would panic for it.
            Architecture::X86_64 => ("ttyS0", " no_timer_check".to_owned()),
            Architecture::Arm64 => ("ttyAMA0", self.built_in_kvm()),
        };
        format!("console={console} panic=-1 loglevel=4 net.ifnames=0{own} {what}{address}")
    }
}

/// The emulator's program.
fn program(architecture: Architecture) -> String {
    format!("usr/bin/qemu-system-{}", architecture.machine())
}

/// The models whose SVM is off by default, and the one whose pointer authentication takes most of the time
/// where it is done as the architecture says.
fn cpu(architecture: Architecture, model: &str) -> &str {
    match (architecture, model) {
        (Architecture::X86_64, "qemu64") => "qemu64,+svm,+npt",
        (Architecture::Arm64, "max") => "max,pauth-impdef=on",
        (_, model) => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_names_streams_network_and_mark() {
        let network = Network { socket: "/run/net".into(), listens: false, number: 2 };
        let boot = Boot {
            emulator: Path::new("/q"),
            architecture: Architecture::X86_64,
            model: "qemu64",
            kvm_parameters: &[],
            kernel: Path::new("/k/vmlinuz"),
            folder: Path::new("/r"),
            mark: Some("word"),
            memory_mib: 512,
            network: Some(&network),
        };
        let line = format!("{:?}", boot.command());
        for part in [
            "qemu64,+svm",
            "path=/r/out",
            "path=/r/err",
            "addr.path=/run/net",
            "server=off",
            "lab.address=10.77.0.2",
            "lab.mark=word",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let shell = Boot { mark: None, network: None, ..boot };
        let line = format!("{:?}", shell.command());
        assert!(line.contains("lab.mode=shell") && !line.contains("netdev"));
        let parameters = ["halt_poll_ns=0".to_owned()];
        let arm =
            Boot { architecture: Architecture::Arm64, model: "max", kvm_parameters: &parameters, ..shell };
        let line = format!("{:?}", arm.command());
        for part in [
            "qemu-system-aarch64",
            "virtualization=on",
            "max,pauth-impdef=on",
            "console=ttyAMA0",
            "kvm-arm.mode=nested kvm.halt_poll_ns=0 lab.mode=shell",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
