//! The initial root of a lab host: busybox, KVM's modules, the programs of this run, `init.sh` and `steps.sh`.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::bochs;
use crate::cpio::Writer;
use crate::error::Error;
use crate::host::Host;
use crate::kernel;

/// The first process; see there.
const INIT: &str = include_str!("init.sh");

/// What it reads; see there.
pub(crate) const STEPS: &str = include_str!("steps.sh");

/// Emulated hosts calibrate their TSC differently at each boot and cannot scale it: a guest from another
/// host has a frequency that is off by more than KVM's usual 250 ppm (kernel, `arch/x86/kvm/x86.c`).
const TSC_TOLERANCE: &str = "tsc_tolerance_ppm=100000";

/// What goes into the root.
#[derive(Debug)]
pub(crate) struct Root<'a> {
    /// The host.
    pub(crate) host: &'a Host,
    /// busybox, static.
    pub(crate) busybox: &'a Path,
    /// The kernel's modules.
    pub(crate) modules: &'a Path,
    /// Modules of a network for Linux guests, if it has some.
    pub(crate) bridges: Option<&'a Path>,
    /// Parameters of the module kvm beside the lab's own, as `name=value`.
    pub(crate) kvm_parameters: &'a [String],
    /// Whether KVM measures the TSC as strictly as it does by itself.
    pub(crate) strict_tsc: bool,
    /// Files and programs: their path in the host, without the first slash, and here.
    pub(crate) files: &'a [(String, PathBuf)],
}

impl Root<'_> {
    /// Writes the archive.
    pub(crate) fn write(&self, to: &Path) -> Result<(), Error> {
        let mut files: Vec<(String, PathBuf)> = vec![("bin/busybox".to_owned(), self.busybox.to_owned())];
        let mut order = String::new();
        let mut paths = kernel::load_order(self.modules, self.host.vendor.modules())?;
        if let Some(modules) = self.bridges {
            paths.extend(kernel::load_order(modules, kernel::BRIDGES)?);
        }
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            order.extend([&name, " ", &self.parameters(&name), "\n"]);
            files.push((format!("lab/modules/{name}"), path));
        }
        files.extend(self.files.iter().cloned());
        let texts = [
            ("init", INIT.to_owned()),
            ("lab/steps", STEPS.to_owned()),
            ("lab/order", order),
            ("lab/host", format!("{}\n", self.host)),
        ];
        let mut contents = Vec::new();
        for (name, path) in files {
            contents.push((name, fs::read(&path).map_err(Error::file("read", &path))?));
        }
        contents.extend(texts.map(|(name, text)| (name.to_owned(), text.into_bytes())));
        archive(&contents, to)
    }

    fn parameters(&self, module: &str) -> String {
        match module {
            "kvm.ko" if self.strict_tsc => self.kvm_parameters.join(" "),
            "kvm.ko" => format!("{TSC_TOLERANCE} {}", self.kvm_parameters.join(" ")),
            "kvm_amd.ko" => "nested=1".to_owned(),
            "kvm_intel.ko" => bochs::kvm_intel_parameters(),
            _ => String::new(),
        }
    }
}

/// Writes an archive of files with the folders that an initial root begins with.
pub(crate) fn archive(contents: &[(String, Vec<u8>)], to: &Path) -> Result<(), Error> {
    let file = File::create(to).map_err(Error::file("create", to))?;
    let mut writer = Writer::new(BufWriter::new(file));
    (|| {
        let mut folders: Vec<String> = ["dev", "files"].map(str::to_owned).into();
        folders.extend(contents.iter().flat_map(|(name, _)| folders_of(name)));
        folders.sort();
        folders.dedup();
        folders.iter().try_for_each(|folder| writer.folder(folder))?;
        writer.device("dev/console", 5, 1)?;
        contents.iter().try_for_each(|(name, data)| writer.file(name, data))?;
        writer.finish().map(drop)
    })()
    .map_err(Error::file("write", to))
}

/// Every folder above a file, outermost first.
fn folders_of(name: &str) -> Vec<String> {
    name.match_indices('/').map(|(at, _)| name[..at].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_holds_the_modules_in_order_with_their_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("modules")).unwrap();
        for (name, needs) in [("kvm", ""), ("kvm_amd", "kvm")] {
            fs::write(at(&format!("modules/{name}.ko")), format!("\0depends={needs}\0")).unwrap();
        }
        fs::write(at("busybox"), "bb").unwrap();
        fs::write(at("ferry"), "program").unwrap();
        let host = Host::parse("amd/6.12/EPYC").unwrap();
        let mut root = Root {
            host: &host,
            busybox: &at("busybox"),
            modules: &at("modules"),
            bridges: None,
            kvm_parameters: &[],
            strict_tsc: false,
            files: &[("lab/bin/ferry".to_owned(), at("ferry"))],
        };
        root.write(&at("root")).unwrap();
        let text = String::from_utf8_lossy(&fs::read(at("root")).unwrap()).into_owned();
        assert!(text.contains("kvm.ko tsc_tolerance_ppm=100000 \nkvm_amd.ko nested=1\n"));
        assert!(text.find("lab/bin\0").unwrap() < text.find("lab/bin/ferry\0").unwrap());
        assert!(text.contains("amd/6.12/EPYC\n") && text.contains("lab-end:"));
        root.strict_tsc = true;
        root.write(&at("root")).unwrap();
        assert!(!String::from_utf8_lossy(&fs::read(at("root")).unwrap()).contains("tsc_tolerance_ppm"));
    }
}
