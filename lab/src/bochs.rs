//! The command line and configuration of Bochs for an Intel host.
//!
//! Bochs has a BIOS and drives but no loader for kernels: each run makes a CD of kernel and initial root
//! with isolinux. Serial lines carry the console and the two streams. Debian's Bochs is built with its
//! debugger, which waits for an order: the file given with `-rc` gives it. (Bochs, `doc/docbook/user`.)
//! Another Bochs, built without it, is several times as fast: [`OWN`] names it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::command;
use crate::error::Error;
use crate::lab::{fetch_tool, native, tool_item};
use crate::process::tied;

/// The suite whose Bochs (2.7) is known to run these kernels.
const SUITE: &str = "bookworm";

/// Names the folder into which another Bochs was installed (its `--prefix`), to be used instead of Debian's.
const OWN: &str = "FERRY_LAB_BOCHS";

/// Bochs itself with its BIOS, the boot loader of the CD with its library, and what writes the CD.
const PACKAGES: &[&str] = &["bochs", "isolinux", "syslinux-common", "xorriso"];

/// Instructions that make one second of the host. Bochs executes fewer: the host's clock runs slower
/// than ours. A lower number would let timers take all the time that there is.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// Cylinders of the disk that carries files: with 16 heads and 63 sectors, 1 GiB. The image has holes
/// where nothing was written.
const CYLINDERS: u32 = 2080;

/// Another Bochs.
fn own() -> Option<PathBuf> {
    std::env::var_os(OWN).filter(|prefix| !prefix.is_empty()).map(PathBuf::from)
}

/// The items of the cache that Bochs needs.
pub(crate) fn items() -> Vec<String> {
    PACKAGES.iter().map(|package| item(package)).collect()
}

/// What the module kvm-intel is told: with a Bochs that emulates virtual APICs (3.0 does) to do without them.
pub(crate) fn kvm_intel_parameters() -> String {
    let apicv = if own().is_some() { " enable_apicv=0" } else { "" };
    format!("nested=1{apicv}")
}

fn item(package: &str) -> String {
    tool_item(&format!("intel-{package}"), native())
}

/// Fetches Bochs and what makes its CDs.
pub(crate) fn prepare(cache: &Cache, say: &dyn Fn(&str)) -> Result<(), Error> {
    for package in PACKAGES {
        cache.make(&item(package), |into| fetch_tool(cache, SUITE, package, native(), into, say))?;
    }
    Ok(())
}

/// What differs between two starts.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// Where the packages lie.
    pub(crate) cache: &'a Cache,
    /// The processor's model.
    pub(crate) model: &'a str,
    /// The kernel's image.
    pub(crate) kernel: &'a Path,
    /// The folder of this run, with `root`.
    pub(crate) folder: &'a Path,
    /// The word in the streams' marks.
    pub(crate) mark: &'a str,
    /// The memory of the host in MiB.
    pub(crate) memory_mib: u32,
}

impl Boot<'_> {
    /// Makes the disk that carries files.
    pub(crate) fn disk(&self) -> Result<PathBuf, Error> {
        let path = self.folder.join("disk");
        let size = u64::from(CYLINDERS) * 16 * 63 * 512;
        let made = File::create(&path).and_then(|file| file.set_len(size));
        made.map(|()| path.clone()).map_err(Error::file("create", &path))
    }

    /// Writes the CD and the configuration; answers with the command line.
    pub(crate) fn command(&self, streams: &[TcpListener; 2], carrier: &Path) -> Result<Command, Error> {
        let disc = self.disc()?;
        let mut ports = Vec::new();
        for stream in streams {
            let address = stream.local_addr().map_err(Error::file("listen on", Path::new("127.0.0.1")))?;
            ports.push(address.port());
        }
        let tree = self.cache.item(&item("bochs"));
        let share = tree.join("usr/share/bochs");
        let with_display = |display: &str| {
            let text = self.configuration(&share, display, &disc, carrier, &ports);
            self.written("bochsrc", &text)
        };
        let mut bochs = if let Some(prefix) = own() {
            let program = prefix.join("bin/bochs");
            if !program.exists() {
                let name = program.display();
                return Err(Error::Unable(format!(
                    "there is no {name}: {OWN} is to name the folder where Bochs was installed"
                )));
            }
            let mut bochs = tied(program.as_os_str());
            bochs.arg("-q").arg("-f").arg(with_display("nogui")?);
            bochs
        } else {
            let mut bochs = foreign(&tree, "usr/bin/bochs-bin", true);
            bochs.env("LTDL_LIBRARY_PATH", tree.join("usr/lib/x86_64-linux-gnu/bochs/plugins"));
            bochs.arg("-q").arg("-f").arg(with_display("rfb, options=\"timeout=0\"")?);
            bochs.arg("-rc").arg(self.written("orders", "c\n")?);
            bochs
        };
        bochs.env("BXSHARE", &share).current_dir(self.folder);
        Ok(bochs)
    }

    /// Writes a file into the folder of this run.
    fn written(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        Ok(path)
    }

    /// A CD that boots this kernel and this root.
    fn disc(&self) -> Result<PathBuf, Error> {
        let folder = self.folder.join("cd");
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        let loader = self.cache.item(&item("isolinux")).join("usr/lib/ISOLINUX/isolinux.bin");
        let library =
            self.cache.item(&item("syslinux-common")).join("usr/lib/syslinux/modules/bios/ldlinux.c32");
        let root = self.folder.join("root");
        for (from, name) in [
            (&loader, "isolinux.bin"),
            (&library, "ldlinux.c32"),
            (&self.kernel.to_owned(), "vmlinuz"),
            (&root, "root"),
        ] {
            fs::copy(from, folder.join(name)).map_err(Error::file("copy", from))?;
        }
        let menu = folder.join("isolinux.cfg");
        let text = format!(
            "default lab\nprompt 0\nlabel lab\n kernel /vmlinuz\n initrd /root\n append console=ttyS0 panic=-1 \
             loglevel=4 lpj=1000000 tsc=reliable {} lab.mark={}\n",
            kernel_option(self.model),
            self.mark
        );
        fs::write(&menu, text).map_err(Error::file("write", &menu))?;
        let disc = self.folder.join("cd.iso");
        let mut command = foreign(&self.cache.item(&item("xorriso")), "usr/bin/xorriso", false);
        command.args(["-as", "mkisofs", "-quiet", "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot"]);
        command.args(["-boot-load-size", "4", "-boot-info-table", "-o"]).arg(&disc).arg(&folder);
        command::capture(&mut command)?;
        Ok(disc)
    }

    fn configuration(
        &self,
        share: &Path,
        display: &str,
        disc: &Path,
        carrier: &Path,
        ports: &[u16],
    ) -> String {
        let (share, disc, carrier, folder) =
            (share.display(), disc.display(), carrier.display(), self.folder.display());
        let mut text = format!(
            "config_interface: textconfig\n\
             display_library: {display}\n\
             cpu: model={}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
             memory: guest={memory}, host={memory}\n\
             romimage: file={share}/BIOS-bochs-latest\n\
             vgaromimage: file={share}/VGABIOS-lgpl-latest\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path={disc}, status=inserted\n\
             ata0-slave: type=disk, path={carrier}, mode=flat, cylinders={CYLINDERS}, heads=16, spt=63\n\
             boot: cdrom\n\
             plugin_ctrl: speaker=0\n\
             com1: enabled=1, mode=file, dev={folder}/console\n\
             clock: sync=none, time0=utc\n\
             log: {folder}/bochs.log\n\
             panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ndebug: action=ignore\n",
            self.model,
            memory = self.memory_mib,
        );
        text.extend(
            (2..).zip(ports).map(|(line, port)| {
                format!("com{line}: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n")
            }),
        );
        text
    }
}

/// What a model's kernel is told beside the usual. Bochs 2.7 gives `skylake_x` compact XSAVE areas and says a wrong
/// size of them (CPUID 0xD.1 EBX); Linux then does without XSAVE, AVX and AVX-512, unless it does without
/// XSAVEC and XSAVES (kernel, `arch/x86/include/asm/cpufeatures.h`: word 10, bits 1 and 3).
fn kernel_option(model: &str) -> &'static str {
    if model == "corei7_skylake_x" { "clearcpuid=321,323" } else { "" }
}

/// A program of an unpacked tree with the tree's own libraries; `tied` if it runs for long.
fn foreign(tree: &Path, program: &str, long: bool) -> Command {
    let loader = tree.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let mut command = if long { tied(loader.as_os_str()) } else { Command::new(&loader) };
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|folder| tree.join(folder));
    let libraries = std::env::join_paths(libraries).unwrap_or_default();
    command.arg("--library-path").arg(libraries).arg(tree.join(program));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_model_disc_and_streams() {
        let cache = Cache::at("/cache".into());
        let boot = Boot {
            cache: &cache,
            model: "corei7_haswell_4770",
            kernel: Path::new("/k"),
            folder: Path::new("/run/1"),
            mark: "word",
            memory_mib: 512,
        };
        let text = boot.configuration(
            Path::new("/b"),
            "nogui",
            Path::new("/run/1/cd.iso"),
            Path::new("/run/1/disk"),
            &[4001, 4002],
        );
        for part in [
            "model=corei7_haswell_4770",
            "display_library: nogui\n",
            "file=/b/BIOS-bochs-latest",
            "path=/run/1/cd.iso",
            "path=/run/1/disk",
            "com2: enabled=1, mode=socket-client, dev=127.0.0.1:4001",
            "com3:",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
