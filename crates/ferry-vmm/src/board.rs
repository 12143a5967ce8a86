//! What a guest's machine has beside memory and vCPUs: the Linux kernel that it boots, and its virtio devices.
//!
//! A [`Board`] crosses with the [`GuestConfig`] as the `config` of the machine description
//! ([`MachineConfig`]): a CBOR map with numbered fields, in which a guest without a board has none. A form that
//! this build would not write itself is refused, for what it skipped could be what the guest needs.

use minicbor::{Decode, Encode};

use crate::{ConfigError, GuestConfig, Payload};

/// The most devices of a board.
pub const MAX_DEVICES: usize = 8;

/// The longest path of a file, in bytes (`PATH_MAX` of Linux, without its end).
pub const MAX_PATH_BYTES: usize = 4095;

/// The longest command line of a kernel, in bytes (`COMMAND_LINE_SIZE` of arm64 and x86-64, without its end).
pub const MAX_COMMAND_LINE_BYTES: usize = 2047;

/// The longest name of a network interface, in bytes (`IFNAMSIZ` without its end).
pub const MAX_TAP_BYTES: usize = 15;

/// The longest wire form of a configuration, in bytes.
const MAX_ENCODED_BYTES: usize = 48 << 10;

// Where virtio devices are: device `n` has a window of so many bytes and an interrupt of its own, which is level-triggered.
/// Where the window of the first device begins, in guest-physical memory.
#[cfg(target_arch = "x86_64")]
pub const DEVICES: u64 = 0xd000_0000;
/// Where the window of the first device begins, in guest-physical memory.
#[cfg(target_arch = "aarch64")]
pub const DEVICES: u64 = 0x0a10_0000;
/// Bytes of a window.
pub const DEVICE_BYTES: u64 = 0x1000;
/// The first device's interrupt: the number of an input of the I/O APIC ("GSI").
#[cfg(target_arch = "x86_64")]
pub const DEVICE_INTERRUPTS: u32 = 16;
/// The first device's interrupt: its number in the GIC ("INTID"); shared interrupt 16.
#[cfg(target_arch = "aarch64")]
pub const DEVICE_INTERRUPTS: u32 = 48;

/// What a machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Board {
    /// The kernel that it boots; there is one if and only if the payload is [`Payload::Linux`].
    #[n(0)]
    pub linux: Option<Linux>,
    /// Its virtio devices, in the order of their places; at most [`MAX_DEVICES`].
    #[n(1)]
    pub devices: Vec<DeviceSpec>,
}

/// A Linux kernel and what it is started with. The files are read at birth, and again when the guest restarts. On a host
/// that was not told where it has one of them ([`Places`](crate::Places)) its path is empty, and the guest cannot restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Linux {
    /// Absolute path of the kernel's file.
    #[n(0)]
    pub kernel: String,
    /// Absolute path of the initramfs.
    #[n(1)]
    pub initramfs: Option<String>,
    /// The command line.
    #[n(2)]
    pub command_line: String,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(flat)]
pub enum DeviceSpec {
    /// A block device over a raw image.
    #[n(0)]
    Disk {
        /// Absolute path of the image.
        #[n(0)]
        path: String,
        /// Whether the guest may not write to it.
        #[n(1)]
        read_only: bool,
    },
    /// A network card over a tap device.
    #[n(1)]
    Net {
        /// The tap device's name on the host.
        #[n(0)]
        tap: String,
        /// The card's address.
        #[n(1)]
        mac: [u8; 6],
    },
    /// A source of random bytes: the host's.
    #[n(2)]
    Entropy,
    /// A console.
    #[n(3)]
    Console,
}

/// A board that cannot be, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// A board that does not go with the payload.
    #[error("a kernel and the payload `linux` go together: give both or none")]
    Kernel,
    /// Devices of a guest that has no drivers.
    #[error("the built-in payload `{payload}` has no drivers: give devices to a kernel or an image")]
    Drivers {
        /// The payload's name.
        payload: &'static str,
    },
    /// Too many devices.
    #[error("{count} virtio devices are more than a guest has places for: give at most {MAX_DEVICES}")]
    Devices {
        /// Devices asked for.
        count: usize,
    },
    /// A path that names no file.
    #[error("{path:?} cannot name a file of a guest: use an absolute path of at most {MAX_PATH_BYTES} bytes")]
    Path {
        /// The path.
        path: String,
    },
    /// A command line that no kernel takes.
    #[error(
        "a command line of {bytes} bytes cannot be given to a kernel: it takes {MAX_COMMAND_LINE_BYTES}, none of them NUL"
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// A name that no tap device has.
    #[error("{name:?} cannot name a tap device: use 1 to {MAX_TAP_BYTES} characters, no slash and no space")]
    Tap {
        /// The name.
        name: String,
    },
    /// An address that no single card has.
    #[error(
        "the address of a network card must name one card: its first byte {first:#04x} must be even, and not all bytes 0"
    )]
    Mac {
        /// The address's first byte.
        first: u8,
    },
    /// One file or tap device for two.
    #[error("{name} is given to two devices: each needs its own")]
    Twice {
        /// What it is.
        name: String,
    },
}

/// What a guest's machine is: the whole of what a target builds it from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MachineConfig {
    /// Memory, vCPUs, payload.
    pub guest: GuestConfig,
    /// What it has beside.
    pub board: Board,
}

/// The wire form: that of [`GuestConfig`], and the board.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    memory_bytes: u64,
    #[n(1)]
    cpus: u32,
    #[n(2)]
    payload: Payload,
    #[n(3)]
    low_bytes: Option<u64>,
    #[n(4)]
    board: Option<Board>,
}

impl DeviceSpec {
    /// Which kind it is, as the program's flags have it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "disk",
            Self::Net { .. } => "net",
            Self::Entropy => "entropy",
            Self::Console => "virtio-console",
        }
    }

    fn validate(&self) -> Result<(), BoardError> {
        match self {
            Self::Disk { path, .. } => check_path(path),
            Self::Net { tap, mac } => {
                let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
                if !(1..=MAX_TAP_BYTES).contains(&tap.len()) || !tap.chars().all(is_plain) {
                    return Err(BoardError::Tap { name: tap.clone() });
                }
                let [first, ..] = *mac;
                if first & 1 == 1 || *mac == [0; 6] {
                    return Err(BoardError::Mac { first });
                }
                Ok(())
            }
            Self::Entropy | Self::Console => Ok(()),
        }
    }

    /// What of the host only one device may have.
    fn own(&self) -> Option<&str> {
        match self {
            Self::Disk { path: name, .. } | Self::Net { tap: name, .. } => Some(name),
            Self::Entropy | Self::Console => None,
        }
    }
}

impl Board {
    /// Whether it has nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The devices with their places.
    pub fn places(&self) -> impl Iterator<Item = (u32, &DeviceSpec)> {
        (0..).zip(&self.devices)
    }

    /// Says what cannot be for a guest of this payload.
    pub fn validate(&self, payload: &Payload) -> Result<(), BoardError> {
        if self.linux.is_some() != (*payload == Payload::Linux) {
            return Err(BoardError::Kernel);
        }
        if !self.devices.is_empty() && !matches!(payload, Payload::Linux | Payload::Image { .. }) {
            return Err(BoardError::Drivers { payload: payload.name() });
        }
        if self.devices.len() > MAX_DEVICES {
            return Err(BoardError::Devices { count: self.devices.len() });
        }
        if let Some(linux) = &self.linux {
            let files = [Some(&linux.kernel), linux.initramfs.as_ref()].into_iter().flatten();
            files.filter(|path| !path.is_empty()).try_for_each(|path| check_path(path))?;
            let bytes = linux.command_line.len();
            if bytes > MAX_COMMAND_LINE_BYTES || linux.command_line.contains('\0') {
                return Err(BoardError::CommandLine { bytes });
            }
        }
        for (at, device) in self.devices.iter().enumerate() {
            device.validate()?;
            if device.own().is_some() && self.devices.iter().take(at).any(|other| other.own() == device.own())
            {
                return Err(BoardError::Twice { name: device.own().unwrap_or_default().to_owned() });
            }
        }
        Ok(())
    }
}

fn check_path(path: &str) -> Result<(), BoardError> {
    if path.starts_with('/') && path.len() <= MAX_PATH_BYTES && !path.contains('\0') {
        return Ok(());
    }
    Err(BoardError::Path { path: path.to_owned() })
}

impl MachineConfig {
    /// Says what cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.guest.validate()?;
        Ok(self.board.validate(&self.guest.payload)?)
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let GuestConfig { memory_bytes, cpus, payload, low_bytes } = self.guest;
        let board = Some(self.board.clone()).filter(|board| !board.is_empty());
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail.
        let _infallible =
            minicbor::encode(Wire { memory_bytes, cpus, payload, low_bytes, board }, &mut bytes);
        bytes
    }

    /// Reads the wire form and validates it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_ENCODED_BYTES {
            return Err(ConfigError::Encoding);
        }
        let wire: Wire = minicbor::decode(bytes).map_err(|_| ConfigError::Encoding)?;
        let Wire { memory_bytes, cpus, payload, low_bytes, board } = wire;
        let guest = GuestConfig { memory_bytes, cpus, payload, low_bytes };
        let config = Self { guest, board: board.unwrap_or_default() };
        if config.to_bytes() != bytes {
            return Err(ConfigError::Encoding);
        }
        config.validate()?;
        Ok(config)
    }
}

impl From<GuestConfig> for MachineConfig {
    /// A machine without a board.
    fn from(guest: GuestConfig) -> Self {
        Self { guest, board: Board::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    fn guest(payload: Payload) -> GuestConfig {
        GuestConfig { memory_bytes: 64 << 20, cpus: 1, payload, low_bytes: None }
    }

    fn linux() -> Linux {
        let initramfs = Some("/boot/initramfs".to_owned());
        Linux { kernel: "/boot/vmlinuz".to_owned(), initramfs, command_line: "console=ttyS0".to_owned() }
    }

    fn disk(path: &str) -> DeviceSpec {
        DeviceSpec::Disk { path: path.to_owned(), read_only: false }
    }

    fn net(tap: &str, first: u8) -> DeviceSpec {
        DeviceSpec::Net { tap: tap.to_owned(), mac: [first, 0, 0, 0, 0, 1] }
    }

    #[test]
    fn the_wire_form_returns_and_nothing_else_is_taken() {
        let devices = vec![disk("/a"), net("tap0", 2), DeviceSpec::Entropy, DeviceSpec::Console];
        let full = Board { linux: Some(linux()), devices };
        let plain = |payload| MachineConfig::from(guest(payload));
        for config in [
            plain(Payload::Idle),
            plain(Payload::Clock { jump_limit_ms: 7 }),
            plain(Payload::Churn { rate_bytes_per_second: 4096, working_set_bytes: 8192 }),
            plain(Payload::Ticks),
            plain(Payload::Image { level: Level::Kernel }),
            MachineConfig {
                guest: GuestConfig { low_bytes: Some(4 << 20), ..guest(Payload::Idle) },
                ..plain(Payload::Idle)
            },
            MachineConfig { guest: guest(Payload::Linux), board: full },
        ] {
            let bytes = config.to_bytes();
            assert_eq!(MachineConfig::from_bytes(&bytes), Ok(config));
            for cut in 0..bytes.len() {
                assert!(MachineConfig::from_bytes(&bytes[..cut]).is_err());
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(MachineConfig::from_bytes(&longer), Err(ConfigError::Encoding));
        }
        assert_eq!(MachineConfig::from_bytes(&[0x9f; 65]), Err(ConfigError::Encoding));
    }

    #[test]
    fn each_impossible_board_has_its_sentence() {
        let board = |devices| Board { linux: Some(linux()), devices };
        let with = |linux| Board { linux: Some(linux), devices: Vec::new() };
        for (board, start) in [
            (Board::default(), "a kernel and the payload `linux` go together"),
            (board(vec![DeviceSpec::Entropy; 9]), "9 virtio devices"),
            (board(vec![disk("image")]), "\"image\" cannot name a file"),
            (board(vec![disk("/a"), disk("/a")]), "/a is given to two devices"),
            (board(vec![net("a tap", 2)]), "\"a tap\" cannot name a tap"),
            (board(vec![net("tap0", 1)]), "the address of a network card must name one card"),
            (with(Linux { kernel: "vmlinuz".to_owned(), ..linux() }), "\"vmlinuz\" cannot name a file"),
            (with(Linux { command_line: "x".repeat(2048), ..linux() }), "a command line of 2048 bytes"),
        ] {
            let text = board.validate(&Payload::Linux).unwrap_err().to_string();
            assert!(text.starts_with(start), "{text}");
        }
        let devices = Board { linux: None, devices: vec![DeviceSpec::Entropy] };
        let refused = devices.validate(&Payload::Idle).unwrap_err();
        assert!(refused.to_string().starts_with("the built-in payload `idle` has no drivers"));
        devices.validate(&Payload::Image { level: Level::Kernel }).unwrap();
        board(vec![disk("/a"), disk("/b"), net("tap0", 2)]).validate(&Payload::Linux).unwrap();
    }
}
