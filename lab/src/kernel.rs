//! A kernel for the lab: the boot image and those modules that a host needs, from Debian's cloud flavour.
//!
//! Debian's names: `linux-image-6.12.107+deb13-cloud-amd64`; from about 7.0 on the boot image lies in
//! `linux-binary-…` and the modules in `linux-modules-…`. The packages hold no `modules.dep`, so what a
//! module needs is read from its own `.modinfo` section, `depends=` (kernel, `scripts/mod/modpost.c`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Suite;
use crate::cache::Cache;
use crate::error::Error;
use crate::files::walk;
use crate::host::{Architecture, Vendor};

/// The packages that together hold a kernel; not every version has all of them.
const PARTS: &[&str] = &["image", "binary", "modules"];

/// The suites that may have a series.
fn suites(series: &str) -> &'static [&'static str] {
    match series {
        "5.10" => &["bullseye"],
        "6.1" => &["bookworm"],
        "6.12" => &["trixie"],
        _ => &["trixie-backports", "sid"],
    }
}

/// The name of a kernel's item in the cache.
pub(crate) fn item(architecture: Architecture, series: &str) -> String {
    match architecture {
        Architecture::X86_64 => format!("kernels/{series}"),
        Architecture::Arm64 => format!("kernels-arm64/{series}"),
    }
}

/// What hosts of Linux guests load beside their own modules, so that guests have a network.
pub(crate) const BRIDGES: &[&str] = &["tun", "bridge"];

/// What Linux guests load for their devices.
pub(crate) const DEVICES: &[&str] =
    &["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "ext4"];

/// The name of the item of the modules around Linux guests.
pub(crate) fn guests_item(architecture: Architecture, series: &str) -> String {
    format!("linux-guests/{}-{series}", architecture.debian())
}

/// Fetches the modules around Linux guests, of exactly that release, into `modules` in the folder.
pub(crate) fn fetch_guests(
    cache: &Cache,
    architecture: Architecture,
    release: &str,
    busybox: &Path,
    into: &Path,
    say: &dyn Fn(&str),
) -> Result<(), Error> {
    let series = series_of(release);
    for name in suites(&series) {
        let suite = Suite::open(cache, name, architecture.debian())?;
        let mut packages = packages(&suite, release, architecture)?;
        // Where there is a package of the modules alone, all of them are in it.
        if let Some(at) = packages.iter().position(|name| name.starts_with("linux-modules-")) {
            packages = vec![packages.swap_remove(at)];
        }
        if packages.is_empty() {
            continue;
        }
        say(&format!("kernel {release}: fetching more of its modules from {name}"));
        let tree = into.join("tree");
        suite.unpack(&packages, &tree)?;
        take_modules(&tree, busybox, &[BRIDGES, DEVICES].concat(), &into.join("modules"))?;
        return fs::remove_dir_all(&tree).map_err(Error::file("remove", &tree));
    }
    Err(Error::Unable(format!(
        "Debian's {} do not have the kernel {release} any more, and hosts of Linux guests need more of its modules: \
         `cargo xtask lab clean` forgets it, and the next call fetches what there is",
        suites(&series).join(" and ")
    )))
}

/// The packages of a version that are there.
fn packages(suite: &Suite, version: &str, architecture: Architecture) -> Result<Vec<String>, Error> {
    let debian = architecture.debian();
    let there = suite.packages(&format!("^linux-.*-{}-cloud-{debian}$", version.replace('+', "[+]")))?;
    let names = PARTS.iter().map(|part| format!("linux-{part}-{version}-cloud-{debian}"));
    Ok(names.filter(|name| there.contains(name)).collect())
}

/// Fetches the kernel of that series into the folder: `vmlinuz`, `modules/NAME.ko`, and `release`, the
/// version that it is. `busybox` is the program that unpacks compressed modules.
pub(crate) fn fetch(
    cache: &Cache,
    architecture: Architecture,
    series: &str,
    busybox: &Path,
    into: &Path,
    say: &dyn Fn(&str),
) -> Result<(), Error> {
    let (suite, version) = find(cache, architecture, series, say)?;
    let packages = packages(&suite, &version, architecture)?;
    say(&format!("kernel {version}: fetching from {}", suite.name()));
    let tree = into.join("tree");
    suite.unpack(&packages, &tree)?;
    let image = find_file(&tree, &|name| name.starts_with("vmlinuz"))?.ok_or_else(|| Error::Content {
        what: format!("the package of kernel {version}"),
        reason: "it has no vmlinuz".to_owned(),
    })?;
    let at = into.join("vmlinuz");
    fs::rename(&image, &at).map_err(Error::file("rename", &image))?;
    let hosts: Vec<&str> = Vendor::ALL.iter().flat_map(|vendor| vendor.modules()).copied().collect();
    take_modules(&tree, busybox, &hosts, &into.join("modules"))?;
    fs::remove_dir_all(&tree).map_err(Error::file("remove", &tree))?;
    let release = into.join("release");
    fs::write(&release, &version).map_err(Error::file("write", &release))
}

/// The suite and the highest version of a series, over all suites that may have it.
fn find(
    cache: &Cache,
    architecture: Architecture,
    series: &str,
    say: &dyn Fn(&str),
) -> Result<(Suite, String), Error> {
    let flavour = format!("-cloud-{}", architecture.debian());
    let mut best: Option<(Suite, String)> = None;
    let mut known = Vec::new();
    for name in suites(series) {
        say(&format!("kernel {series}: reading the list of {name}"));
        let suite = Suite::open(cache, name, architecture.debian())?;
        let versions: Vec<String> = suite
            .packages(&format!("^linux-image-[0-9].*{flavour}$"))?
            .iter()
            .filter_map(|package| {
                Some(package.strip_prefix("linux-image-")?.strip_suffix(&flavour)?.to_owned())
            })
            .collect();
        known.extend(versions.iter().map(|version| series_of(version)));
        let highest = highest(series, &versions);
        let better =
            highest.filter(|version| best.as_ref().is_none_or(|(_, known)| key(version) > key(known)));
        if let Some(version) = better {
            best = Some((suite, version));
        }
    }
    known.sort_by_key(|series| key(series));
    known.dedup();
    best.ok_or_else(|| Error::NoKernel {
        kernel: series.to_owned(),
        suites: suites(series).join(" and "),
        known: known.join(", "),
    })
}

/// The highest version that belongs to the series; to `newest` all do.
fn highest(series: &str, versions: &[String]) -> Option<String> {
    let fitting = versions.iter().filter(|version| series == "newest" || series_of(version) == series);
    fitting.max_by_key(|version| key(version)).cloned()
}

/// `6.12` of `6.12.107+deb13`.
pub(crate) fn series_of(version: &str) -> String {
    version.splitn(3, ['.', '-', '+']).take(2).collect::<Vec<_>>().join(".")
}

/// A version's numbers, by which versions are ordered.
fn key(version: &str) -> Vec<u64> {
    version.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Those modules of an unpacked kernel, and what they need, unpacked into the folder.
fn take_modules(tree: &Path, busybox: &Path, roots: &[&str], into: &Path) -> Result<(), Error> {
    fs::create_dir_all(into).map_err(Error::file("create", into))?;
    let mut paths = BTreeMap::new();
    walk(tree, &mut |path| {
        if let Some(name) = module_name(path) {
            paths.insert(name, path.to_owned());
        }
    })?;
    // One that is not there is built in, or another architecture's.
    let mut open: Vec<String> = roots.iter().map(|&root| root.to_owned()).collect();
    while let Some(name) = open.pop() {
        let to = into.join(format!("{name}.ko"));
        let Some(from) = paths.get(&name).filter(|_| !to.exists()) else { continue };
        unpack_module(from, busybox, &to)?;
        open.extend(needs(&to)?);
    }
    Ok(())
}

/// `kvm_amd` of `…/kvm-amd.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn unpack_module(from: &Path, busybox: &Path, to: &Path) -> Result<(), Error> {
    if from.extension().is_some_and(|extension| extension == "ko") {
        return fs::copy(from, to).map(drop).map_err(Error::file("copy", from));
    }
    let input = File::open(from).map_err(Error::file("read", from))?;
    let output = File::create(to).map_err(Error::file("create", to))?;
    let status = Command::new(busybox)
        .args(["unxz", "-c"])
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .status()
        .map_err(Error::file("start", busybox))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Content { what: from.display().to_string(), reason: "it cannot be unpacked".to_owned() })
}

/// The modules that a module needs, by its `.modinfo`.
fn needs(module: &Path) -> Result<Vec<String>, Error> {
    let bytes = fs::read(module).map_err(Error::file("read", module))?;
    Ok(depends(&bytes))
}

fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(&rest[..end]).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The files of those modules and of all that they need, in the order in which they load; modules that
/// are not in the folder are built in.
pub(crate) fn load_order(folder: &Path, roots: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let mut order = Vec::new();
    for root in roots {
        visit(folder, &root.replace('-', "_"), &mut order)?;
    }
    Ok(order)
}

fn visit(folder: &Path, name: &str, order: &mut Vec<PathBuf>) -> Result<(), Error> {
    let path = folder.join(format!("{name}.ko"));
    if order.contains(&path) || !path.exists() {
        return Ok(());
    }
    for needed in needs(&path)? {
        visit(folder, &needed, order)?;
    }
    order.push(path);
    Ok(())
}

fn find_file(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>, Error> {
    let mut found = None;
    walk(folder, &mut |path| {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(fits) {
            found = Some(path.to_owned());
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_of_a_series_is_chosen() {
        let versions: Vec<String> =
            ["6.12.94+deb13", "6.12.107+deb13", "6.16.3+deb13", "6.9.1"].map(str::to_owned).into();
        assert_eq!(highest("6.12", &versions).as_deref(), Some("6.12.107+deb13"));
        assert_eq!(highest("newest", &versions).as_deref(), Some("6.16.3+deb13"));
        assert_eq!(highest("6.1", &versions), None);
        assert_eq!(series_of("5.10.0-32"), "5.10");
        assert_eq!(
            highest("5.10", &["5.10.0-30".to_owned(), "5.10.0-32".to_owned()]).as_deref(),
            Some("5.10.0-32")
        );
    }

    #[test]
    fn modules_load_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, needs: &str| {
            let text = format!("ELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(folder.path().join(format!("{name}.ko")), text).unwrap();
        };
        write("kvm_amd", "kvm,ccp");
        write("kvm", "irqbypass");
        write("irqbypass", "");
        write("ccp", "rng-core");
        write("rng_core", "");
        let order = load_order(folder.path(), &["kvm-amd", "virtio_pci", "kvm"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "rng_core", "ccp", "kvm_amd"]);
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn a_modules_name_is_that_of_its_file() {
        assert_eq!(module_name(Path::new("/a/kvm-amd.ko.xz")).as_deref(), Some("kvm_amd"));
        assert_eq!(module_name(Path::new("/a/kvm.ko")).as_deref(), Some("kvm"));
        assert_eq!(module_name(Path::new("/a/modules.order")), None);
    }
}
