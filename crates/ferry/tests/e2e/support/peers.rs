//! Peers that are not what a source or a target hopes for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, encode};
use ferry_protocol::message::{
    Hello, Message, Offer, Reason, ReasonKind, TargetHello, ToSource, ToTarget, VERSIONS,
};
use ferry_protocol::{Epoch, InstanceId, MachineDescription, RegionSpan, SessionId};

use super::PATIENCE;

/// What a server does with each caller.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    /// Answers these bytes, then reads on.
    Says(Vec<u8>),
    /// Reads and never answers.
    Silent,
    /// Closes at once.
    Closes,
}

/// A server that is no `ferry receive`; gives its address. It ends with the test's process.
pub(crate) fn server(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let manner = manner.clone();
            std::thread::spawn(move || treat(stream, &manner));
        }
    });
    address
}

fn treat(mut stream: TcpStream, manner: &Manner) {
    let said = match manner {
        Manner::Says(bytes) => stream.write_all(bytes),
        Manner::Silent => Ok(()),
        Manner::Closes => return,
    };
    let mut read = [0; 4096];
    while said.is_ok() && stream.read(&mut read).is_ok_and(|bytes| bytes > 0) {}
}

/// A message of a target as it crosses the link.
pub(crate) fn to_source(message: &ToSource) -> Vec<u8> {
    encode(FrameKind::ToSource, &message.to_bytes())
}

/// A target's refusal to speak any version of the source's.
pub(crate) fn other_version() -> Vec<u8> {
    to_source(&ToSource::Abort(Reason::new(
        ReasonKind::Incompatible,
        "this target speaks the versions 8 to 9",
    )))
}

/// A target's hello in a version that nobody asked for.
pub(crate) fn wrong_hello() -> Vec<u8> {
    let version = VERSIONS.end() + 1;
    to_source(&ToSource::Hello(TargetHello { version, instance: InstanceId(1), program: "other".into() }))
}

/// A frame whose checksum does not fit.
pub(crate) fn garbled() -> Vec<u8> {
    let mut bytes = wrong_hello();
    *bytes.last_mut().unwrap() ^= 1;
    bytes
}

/// A source that a test plays.
#[derive(Debug)]
pub(crate) struct Caller {
    stream: TcpStream,
}

impl Caller {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, message: &ToTarget) {
        self.say(&encode(FrameKind::ToTarget, &message.to_bytes()));
    }

    pub(crate) fn hello(&mut self, versions: (u16, u16), guest: &str, epoch: u64) {
        self.send(&ToTarget::Hello(Hello {
            version_min: versions.0,
            version_max: versions.1,
            session: SessionId(7),
            guest: guest.parse().unwrap(),
            epoch: Epoch(epoch),
            program: "a test".into(),
        }));
    }

    /// Offers a machine that no backend has.
    pub(crate) fn offer_nonsense(&mut self) {
        let regions = vec![RegionSpan { start: 0, length: 1 << 20 }];
        let (config, contract, disks) = (vec![1], Vec::new(), Vec::new());
        let machine =
            MachineDescription { kind: "toaster".into(), vcpus: 1, regions, config, contract, disks };
        self.send(&ToTarget::Offer(Offer::plain(machine)));
    }

    /// The target's next message.
    pub(crate) fn hear(&mut self) -> ToSource {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = Header::parse(&bytes).unwrap();
        let mut head = vec![0; header.head_bytes];
        self.stream.read_exact(&mut head).unwrap();
        header.check(&head).unwrap();
        ToSource::from_bytes(&head).unwrap()
    }

    /// Reads until the target closes its side.
    pub(crate) fn await_end(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
    }
}
