//! Tap devices: the other end of a guest's network card.
//!
//! A descriptor is tied to a tap by an ioctl that no kept crate wraps for a tap that is there already: those that
//! have it make the device themselves (`IFF_TUN_EXCL`) or bring a configuration of networks along. Hence it is here, beside the
//! other descriptors from outside.
//!
//! Facts from the kernel's `linux/if_tun.h`, Documentation/networking/tuntap.rst and `tun_set_iff` in
//! drivers/net/tun.c: a name that no interface has would make a new one, so it is looked for before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::raw::c_ulong;
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use vmm_sys_util::ioctl::{_IOC_WRITE, ioctl_expr, ioctl_with_ref, ioctl_with_val};

/// Opens descriptors of taps.
const DEVICE: &str = "/dev/net/tun";

/// `_IOW('T', 202, int)`.
const TUNSETIFF: c_ulong = ioctl_expr(_IOC_WRITE, b'T' as u32, 202, 4);

/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: c_ulong = ioctl_expr(_IOC_WRITE, b'T' as u32, 208, 4);

/// Frames of Ethernet, with nothing in front of them.
const FLAGS: u16 = IFF_TAP | IFF_NO_PI;
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;

/// `struct ifreq` with its flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A tap device that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// There is no interface of that name.
    #[error("there is no tap device `{name}` on this host: make it with `ip tuntap add {name} mode tap`")]
    Missing {
        /// The name.
        name: String,
    },
    /// There is one, and it is no tap device for one user.
    #[error(
        "the interface `{name}` is no tap device, or one of several queues: make it with `ip tuntap add {name} mode tap`"
    )]
    Kind {
        /// The name.
        name: String,
    },
    /// Another program uses it.
    #[error("the tap device `{name}` is in use by another program: give each guest its own")]
    InUse {
        /// The name.
        name: String,
    },
    /// The kernel refused something.
    #[error("the tap device `{name}` cannot be opened")]
    Open {
        /// The name.
        name: String,
        /// What it said.
        source: io::Error,
    },
}

/// Opens the tap device of this name, which is there already. A read gives one frame, a write takes one, and
/// neither waits.
pub fn open_tap(name: &str) -> Result<OwnedFd, TapError> {
    let failed = |source: io::Error| TapError::Open { name: name.to_owned(), source };
    check_tap(name)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(failed)?;
    attach(&file, name).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => TapError::InUse { name: name.to_owned() },
        Some(Errno::INVAL) => TapError::Kind { name: name.to_owned() },
        _ => failed(error),
    })?;
    without_offloads(&file).map_err(failed)?;
    Ok(file.into())
}

/// Says whether there is an interface of this name.
pub fn check_tap(name: &str) -> Result<(), TapError> {
    let failed = |errno: Errno| TapError::Open { name: name.to_owned(), source: errno.into() };
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(failed)?;
    match netdevice::name_to_index(&any, name) {
        Ok(_) => Ok(()),
        Err(Errno::NODEV) => Err(TapError::Missing { name: name.to_owned() }),
        Err(errno) => Err(failed(errno)),
    }
}

fn attach(file: &File, name: &str) -> io::Result<()> {
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    // The last byte stays 0: it ends the name.
    let Some(room) = request.name.get_mut(..name.len()).filter(|room| room.len() < 16) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    room.copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which `request` is, and keeps no pointer to it.
    let result = unsafe { ioctl_with_ref(file, TUNSETIFF, &request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A tap that stays keeps the offloads of whoever used it last: frames without a checksum, or longer than any that a card without
/// offloads takes, and no header that says so. A kernel that knows of none has none on.
fn without_offloads(file: &File) -> io::Result<()> {
    // SAFETY: the argument is a number.
    if unsafe { ioctl_with_val(file, TUNSETOFFLOAD, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if Errno::from_io_error(&error) == Some(Errno::INVAL) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_the_headers() {
        // linux/if.h: 16 bytes of name and a union of 24; by hand: direction 1, size 4, type 'T', number 202.
        assert_eq!(size_of::<Request>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETOFFLOAD, 0x4004_54d0);
    }

    #[test]
    fn a_refusal_to_turn_offloads_off_is_an_error() {
        // A file that knows no ioctl: ENOTTY.
        let file = File::open("/dev/null").unwrap();
        assert_eq!(without_offloads(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn what_is_no_tap_is_said() {
        let error = open_tap("ferry-none").unwrap_err();
        assert!(error.to_string().starts_with("there is no tap device `ferry-none` on this host"), "{error}");
        match open_tap("lo").unwrap_err() {
            TapError::Kind { .. } => {}
            error => println!("skipped: {error:?}"),
        }
        assert!(matches!(
            open_tap("a-name-of-sixteen"),
            Err(TapError::Missing { .. } | TapError::Open { .. })
        ));
    }
}
