//! Flags of a guest's virtio devices: those it is born with, and where they are on a target.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use ferry_vmm::{DeviceSpec, Places, fresh_seed};

use crate::error::CliError;

/// The devices of a guest that is born.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DeviceArgs {
    /// Give the guest a disk over this raw image, a file or a block device; `,readonly` behind it makes the disk so.
    /// The first is /dev/vda. Needs a kernel or an image.
    #[arg(long, value_name = "PATH[,readonly]")]
    pub(crate) disk: Vec<DiskFlag>,
    /// Give the guest a network card on this tap device, which is there already. By default the card's address is made up.
    #[arg(long, value_name = "TAP[,mac=XX:XX:XX:XX:XX:XX]")]
    pub(crate) net: Vec<NetFlag>,
    /// Give the guest the host's random bytes.
    #[arg(long)]
    pub(crate) entropy: bool,
    /// Give the guest a virtio console, /dev/hvc0, beside its serial port; its output goes where that of the serial port goes.
    #[arg(long)]
    pub(crate) virtio_console: bool,
}

/// Where this host has what the guest needs.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PlaceArgs {
    /// Where the image of the guest's disk N lies here, or is to lie, counted from 0.
    #[arg(long, value_name = "N=PATH")]
    pub(crate) disk: Vec<Numbered>,
    /// Where the images of disks that come with the guest (`ferry migrate --copy-storage`) are to lie, replace what is there;
    /// otherwise nothing, or an empty file, may be there.
    #[arg(long)]
    pub(crate) overwrite_disks: bool,
    /// The tap device here of the guest's network card N, counted from 0.
    #[arg(long, value_name = "N=TAP")]
    pub(crate) net: Vec<Numbered>,
    /// The kernel that the guest begins with here when it restarts.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs of that kernel.
    #[arg(long, value_name = "FILE")]
    pub(crate) initramfs: Option<PathBuf>,
    /// Take images, taps, kernel and initramfs that are not named here from where the guest's source has them: whoever
    /// sends a guest can then make this process open any file that it may open.
    #[arg(long)]
    pub(crate) same_paths: bool,
}

/// A disk's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFlag {
    path: PathBuf,
    read_only: bool,
}

/// A network card's tap device and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetFlag {
    tap: String,
    mac: Option<[u8; 6]>,
}

/// What one of several devices gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbered {
    number: u32,
    what: String,
}

impl FromStr for DiskFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = text.strip_suffix(",readonly").map_or((text, false), |path| (path, true));
        if path.is_empty() {
            return Err("say PATH or PATH,readonly".to_owned());
        }
        Ok(Self { path: path.into(), read_only })
    }
}

impl FromStr for NetFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "say TAP or TAP,mac=XX:XX:XX:XX:XX:XX".to_owned();
        let (tap, rest) = text.split_once(',').map_or((text, None), |(tap, rest)| (tap, Some(rest)));
        let mac = rest.map(|rest| rest.strip_prefix("mac=").and_then(mac).ok_or_else(form)).transpose()?;
        if tap.is_empty() { Err(form()) } else { Ok(Self { tap: tap.to_owned(), mac }) }
    }
}

impl FromStr for Numbered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(number, what)| Some((number.parse().ok()?, what)));
        match parsed {
            Some((number, what)) if !what.is_empty() => Ok(Self { number, what: what.to_owned() }),
            _ => Err("say the device's number, counted from 0, and behind `=` what it gets here".to_owned()),
        }
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| {
        let is_byte = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_byte { u8::from_str_radix(byte, 16).ok() } else { None }
    });
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// An address that no maker of cards gives: bit 1 of the first byte says so.
fn made_up() -> [u8; 6] {
    let mut address = [2; 6];
    address.iter_mut().skip(1).zip(fresh_seed().to_le_bytes()).for_each(|(byte, random)| *byte = random);
    address
}

impl DeviceArgs {
    /// The devices in the order of their places: disks, network cards, entropy, console.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceSpec>, CliError> {
        let disk =
            |flag: &DiskFlag| Ok(DeviceSpec::Disk { path: absolute(&flag.path)?, read_only: flag.read_only });
        let net =
            |flag: &NetFlag| DeviceSpec::Net { tap: flag.tap.clone(), mac: flag.mac.unwrap_or_else(made_up) };
        let mut devices = self.disk.iter().map(disk).collect::<Result<Vec<_>, CliError>>()?;
        devices.extend(self.net.iter().map(net));
        devices.extend(self.entropy.then_some(DeviceSpec::Entropy));
        devices.extend(self.virtio_console.then_some(DeviceSpec::Console));
        Ok(devices)
    }
}

impl PlaceArgs {
    /// The same with paths that hold wherever the program is.
    pub(crate) fn places(&self) -> Result<Places, CliError> {
        let file = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let mut places = Places {
            kernel: file(&self.kernel)?,
            initramfs: file(&self.initramfs)?,
            same_paths: self.same_paths,
            ..Places::default()
        };
        for Numbered { number, what } in &self.disk {
            if places.disks.insert(*number, absolute(Path::new(what))?).is_some() {
                return Err(CliError::usage(format!("--disk {number}= is there twice: say it once")));
            }
        }
        for Numbered { number, what } in &self.net {
            if places.taps.insert(*number, what.clone()).is_some() {
                return Err(CliError::usage(format!("--net {number}= is there twice: say it once")));
            }
        }
        Ok(places)
    }
}

/// A path that holds wherever the program is.
pub(crate) fn absolute(path: &Path) -> Result<String, CliError> {
    let found =
        std::path::absolute(path).map_err(|error| CliError::plain(format!("{}: {error}", path.display())))?;
    let text = found.to_str().map(str::to_owned);
    text.ok_or_else(|| CliError::usage(format!("{}: give a path of UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_they_mean_and_nothing_else() {
        let disk = |text: &str| text.parse::<DiskFlag>();
        assert_eq!(disk("/a,b"), Ok(DiskFlag { path: "/a,b".into(), read_only: false }));
        assert_eq!(disk("/a,readonly"), Ok(DiskFlag { path: "/a".into(), read_only: true }));
        assert!(disk(",readonly").is_err() && disk("").is_err());
        let net = |text: &str| text.parse::<NetFlag>();
        assert_eq!(net("tap0"), Ok(NetFlag { tap: "tap0".into(), mac: None }));
        let mac = Some([2, 0, 0xab, 0xcd, 0xef, 1]);
        assert_eq!(net("tap0,mac=02:00:ab:CD:ef:01"), Ok(NetFlag { tap: "tap0".into(), mac }));
        for wrong in [
            "",
            ",mac=02:00:00:00:00:01",
            "tap0,",
            "tap0,mac=",
            "tap0,mac=02:00:00:00:01",
            "tap0,mac=2:0:0:0:0:1",
        ] {
            assert!(net(wrong).is_err(), "{wrong}");
        }
        let numbered = |text: &str| text.parse::<Numbered>();
        assert_eq!(numbered("1=/a=b"), Ok(Numbered { number: 1, what: "/a=b".into() }));
        assert!(numbered("/a").is_err() && numbered("x=/a").is_err() && numbered("0=").is_err());
    }

    #[test]
    fn devices_come_in_the_order_of_their_places() {
        let args = DeviceArgs {
            disk: vec!["/a".parse().unwrap(), "/b,readonly".parse().unwrap()],
            net: vec!["tap0".parse().unwrap()],
            entropy: true,
            virtio_console: true,
        };
        let kinds: Vec<_> = args.devices().unwrap().iter().map(DeviceSpec::kind).collect();
        assert_eq!(kinds, ["disk", "disk", "net", "entropy", "virtio-console"]);
        assert_eq!(made_up()[0], 2);
        let twice = PlaceArgs { disk: vec!["0=/a".parse().unwrap(); 2], ..PlaceArgs::default() };
        assert!(twice.places().is_err());
    }
}
