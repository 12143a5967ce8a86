//! Peers that write their frames by hand.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use ferry_contract::Verdict;
use ferry_migrate::Address;
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, PageHead, WireRange, encode};
use ferry_protocol::message::{Hello, Message, RoundEnd, RoundTaken, TargetHello, ToSource, ToTarget};
use ferry_protocol::{Epoch, InstanceId, SessionId};

use super::PATIENCE;

/// A connected socket of either kind.
pub(crate) trait Stream: Read + Write + Send + Debug {
    fn close(&self, how: Shutdown);
    fn twin(&self) -> Box<dyn Stream>;
    fn patience(&self);
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn close(&self, how: Shutdown) {
                // The other side may have been faster.
                drop(self.shutdown(how));
            }
            fn twin(&self) -> Box<dyn Stream> {
                Box::new(self.try_clone().unwrap())
            }
            fn patience(&self) {
                self.set_read_timeout(Some(PATIENCE)).unwrap();
                self.set_write_timeout(Some(PATIENCE)).unwrap();
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);

/// One frame, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) head: Vec<u8>,
    /// Page data.
    pub(crate) data: Vec<u8>,
}

impl Frame {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&encode(self.kind, &self.head)[..], &self.data].concat()
    }

    /// The message's name, or the kind of data.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            FrameKind::ToTarget => ToTarget::from_bytes(&self.head).unwrap().name(),
            FrameKind::ToSource => ToSource::from_bytes(&self.head).unwrap().name(),
            FrameKind::Section => "section",
            FrameKind::Pages => "pages",
            FrameKind::Zeros => "zeros",
        }
    }
}

/// One end of a link.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
}

impl Raw {
    pub(crate) fn connect(address: &Address) -> Self {
        Self::try_connect(address).unwrap()
    }

    pub(crate) fn try_connect(address: &Address) -> Option<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(text) => {
                let stream = TcpStream::connect(text).ok()?;
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).ok()?),
        };
        stream.patience();
        Some(Self { stream })
    }

    pub(crate) fn twin(&self) -> Self {
        Self { stream: self.stream.twin() }
    }

    /// Sends bytes. The other side may close at any of them, which is no error here.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends bytes, whether they arrive or not.
    pub(crate) fn throw(&mut self, bytes: &[u8]) {
        self.send(bytes);
    }

    pub(crate) fn tell(&mut self, message: &ToTarget) {
        self.send(&to_target(message));
    }

    pub(crate) fn answer(&mut self, message: &ToSource) {
        self.send(&encode(FrameKind::ToSource, &message.to_bytes()));
    }

    /// The next frame; none at the end of the stream, orderly or not.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = Header::parse(&header).unwrap();
        let mut head = vec![0; header.head_bytes];
        self.stream.read_exact(&mut head).ok()?;
        header.check(&head).unwrap();
        let mut data = Vec::new();
        if header.kind == FrameKind::Pages {
            let pages: u64 =
                PageHead::parse(header.kind, &head).unwrap().ranges.iter().map(|range| range.count).sum();
            data.resize(usize::try_from(pages * 4096).unwrap(), 0);
            self.stream.read_exact(&mut data).ok()?;
        }
        Some(Frame { kind: header.kind, head, data })
    }

    /// The target's next message; that a round was taken is passed over.
    pub(crate) fn hear(&mut self) -> Option<ToSource> {
        loop {
            let message = self.next().map(|frame| ToSource::from_bytes(&frame.head).unwrap());
            if !matches!(message, Some(ToSource::RoundTaken(_))) {
                return message;
            }
        }
    }

    /// The source's next message; data is passed over, and live rounds are taken.
    pub(crate) fn listen(&mut self) -> Option<ToTarget> {
        loop {
            let frame = self.next()?;
            if frame.kind != FrameKind::ToTarget {
                continue;
            }
            let message = ToTarget::from_bytes(&frame.head).unwrap();
            if let ToTarget::RoundEnd(RoundEnd { round, last: false, .. }) = message {
                self.answer(&ToSource::RoundTaken(RoundTaken { round }));
            }
            return Some(message);
        }
    }

    /// Answers as a target does, up to the word that the machine stands.
    pub(crate) fn accept_all(&mut self) {
        assert!(matches!(self.listen(), Some(ToTarget::Hello(_))));
        self.answer(&target_hello());
        assert!(matches!(self.listen(), Some(ToTarget::Offer(_))));
        self.answer(&ToSource::Verdict(Verdict::accept()));
        self.answer(&ToSource::Built);
    }

    pub(crate) fn close(&self, how: Shutdown) {
        self.stream.close(how);
    }
}

pub(crate) fn target_hello() -> ToSource {
    ToSource::Hello(TargetHello { version: 1, instance: InstanceId(1), program: "a test".into() })
}

/// A listener that speaks no protocol of its own.
#[derive(Debug)]
pub(crate) enum RawListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl RawListener {
    pub(crate) fn bind(address: &Address) -> (Self, Address) {
        match address {
            Address::Tcp(text) => {
                let listener = TcpListener::bind(text).unwrap();
                let address = Address::Tcp(listener.local_addr().unwrap().to_string());
                (Self::Tcp(listener), address)
            }
            Address::Unix(path) => (Self::Unix(UnixListener::bind(path).unwrap()), address.clone()),
        }
    }

    pub(crate) fn accept(&self) -> std::io::Result<Raw> {
        let stream: Box<dyn Stream> = match self {
            Self::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(listener) => Box::new(listener.accept()?.0),
        };
        stream.patience();
        Ok(Raw { stream })
    }

    /// Makes a blocked `accept` return.
    pub(crate) fn close(&self) {
        let how = rustix::net::Shutdown::Both;
        let done = match self {
            Self::Tcp(listener) => rustix::net::shutdown(listener, how),
            Self::Unix(listener) => rustix::net::shutdown(listener, how),
        };
        done.unwrap();
    }
}

/// A message in its frame.
pub(crate) fn to_target(message: &ToTarget) -> Vec<u8> {
    frame(FrameKind::ToTarget, &message.to_bytes())
}

/// A frame that keeps no bound; `encode` holds its callers to them.
pub(crate) fn frame(kind: FrameKind, head: &[u8]) -> Vec<u8> {
    let like = encode(kind, &[]);
    let mut bytes = like[..8].to_vec();
    bytes.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), head);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(head);
    bytes
}

pub(crate) fn hello(guest: &str, epoch: u64) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        session: SessionId(epoch),
        guest: guest.parse().unwrap(),
        epoch: Epoch(epoch),
        program: "a test".into(),
    }
}

fn head(round: u32, checksum: Option<u32>, ranges: &[(u64, u64)]) -> Vec<u8> {
    let ranges = ranges.iter().map(|&(first, count)| WireRange { first, count }).collect();
    PageHead { round, checksum, ranges }.to_bytes()
}

/// A frame of pages, with its data.
pub(crate) fn pages(round: u32, ranges: &[(u64, u64)], data: &[u8], summed: bool) -> Vec<u8> {
    let checksum = summed.then(|| crc32c::crc32c(data));
    [&frame(FrameKind::Pages, &head(round, checksum, ranges))[..], data].concat()
}

/// A frame of zeros.
pub(crate) fn zeros(round: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
    frame(FrameKind::Zeros, &head(round, None, ranges))
}
