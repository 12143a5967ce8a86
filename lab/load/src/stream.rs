//! A TCP connection that must not break: numbered messages with a checksum, to the peer and back.
//!
//! A message is its number (8 bytes), the length of its body (4), the CRC-32C of number and body (4), and the body. The guest
//! sends at a rate and reads what comes back; the peer sends every message back as it came. Both look at number and checksum,
//! so bytes that are lost, doubled or changed show on the side where it happened. A message without a body is the last one.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::tally::{Numbers, Stop, Tally};

const HEAD_BYTES: usize = 16;

/// The longest body.
const BODY_BYTES_MAX: usize = 8192;

/// How many messages are on their way at most.
const WINDOW: u64 = 64;

/// How often a side that waits looks for the word to stop.
const LOOK: Duration = Duration::from_millis(200);

/// How long the guest waits for the last message to come back.
const LAST_MAX: Duration = Duration::from_secs(60);

/// How often the guest tries to reach its peer at first.
const TRIES: u32 = 100;

/// What the peer sends back, and what becomes of the guest's own.
#[derive(Debug)]
struct Message {
    number: u64,
    body: Vec<u8>,
}

impl Message {
    /// The message of that number.
    fn new(number: u64) -> Self {
        let mut numbers = Numbers(number);
        let words = numbers.below(BODY_BYTES_MAX / 8) + 1;
        Self { number, body: (0..words).flat_map(|_| numbers.next().to_le_bytes()).collect() }
    }

    /// The last one.
    const fn last(number: u64) -> Self {
        Self { number, body: Vec::new() }
    }

    fn sum(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.number.to_le_bytes()), &self.body)
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = self.number.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(self.sum().to_le_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// Why no message came.
#[derive(Debug)]
enum Miss {
    /// Nobody waits for it any longer.
    GivenUp,
    /// The connection or a message is broken.
    Broken(String),
}

/// Reads a message that must have that number, for as long as somebody waits for it.
fn read(stream: &mut TcpStream, number: u64, waits: &dyn Fn() -> bool) -> Result<Message, Miss> {
    let broken = |what: String| Miss::Broken(format!("message {number}: {what}"));
    let mut head = [0; HEAD_BYTES];
    read_exact(stream, &mut head, waits)?;
    let part = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let found = u64::from(part(0)) | (u64::from(part(4)) << 32);
    let length = usize::try_from(part(8)).unwrap_or(usize::MAX);
    if found != number || length > BODY_BYTES_MAX {
        return Err(broken(format!("number {found} of {length} bytes came in its place")));
    }
    let mut message = Message { number, body: vec![0; length] };
    read_exact(stream, &mut message.body, waits)?;
    if message.sum() == part(12) { Ok(message) } else { Err(broken("its checksum is wrong".to_owned())) }
}

/// Fills the buffer, for as long as somebody waits for it.
fn read_exact(stream: &mut TcpStream, buffer: &mut [u8], waits: &dyn Fn() -> bool) -> Result<(), Miss> {
    let mut at = 0;
    while at < buffer.len() {
        if !waits() {
            return Err(Miss::GivenUp);
        }
        match stream.read(&mut buffer[at..]) {
            Ok(0) => return Err(Miss::Broken("the other side closed the connection".to_owned())),
            Ok(count) => at += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(Miss::Broken(format!("reading: {error}"))),
        }
    }
    Ok(())
}

/// Connects and exchanges messages until the word to stop, so many a second.
pub(crate) fn connect(address: &str, rate: u64, stop: &Stop, tally: &Tally) {
    let mut tries = 0..TRIES;
    let stream = loop {
        match TcpStream::connect(address).and_then(|stream| Ok((stream.try_clone()?, stream))) {
            Ok(both) => break both,
            Err(_) if tries.next().is_some() && stop.pause(LOOK) => {}
            Err(error) => return tally.fault(format!("connecting to {address}: {error}")),
        }
    };
    let (mut input, mut output) = stream;
    if let Err(error) = input.set_read_timeout(Some(LOOK)).and_then(|()| output.set_nodelay(true)) {
        return tally.fault(format!("setting up the connection: {error}"));
    }
    let back = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| send(&mut output, rate, &back, stop, tally));
        receive(&mut input, &back, stop, tally);
    });
}

fn send(output: &mut TcpStream, rate: u64, back: &AtomicU64, stop: &Stop, tally: &Tally) {
    let pause = Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
    let mut number = 0;
    while stop.pause(pause) {
        if number - back.load(Ordering::SeqCst) < WINDOW {
            if let Err(error) = output.write_all(&Message::new(number).bytes()) {
                return tally.fault(format!("sending message {number}: {error}"));
            }
            number += 1;
        }
    }
    if let Err(error) = output.write_all(&Message::last(number).bytes()) {
        tally.fault(format!("sending the last message: {error}"));
    }
}

fn receive(input: &mut TcpStream, back: &AtomicU64, stop: &Stop, tally: &Tally) {
    let mut before = Instant::now();
    for number in 0.. {
        let stopped = OnceCell::new();
        let waits = || !stop.is_set() || stopped.get_or_init(Instant::now).elapsed() < LAST_MAX;
        let came = read(input, number, &waits);
        gap(tally, &mut before);
        match came {
            Ok(message) if message.body.is_empty() && stop.is_set() => return,
            Ok(message) if message.body == Message::new(number).body => tally.done(),
            Ok(_) => return tally.fault(format!("message {number} came back changed")),
            Err(Miss::GivenUp) => return tally.fault("the last message did not come back"),
            Err(Miss::Broken(what)) => return tally.fault(what),
        }
        back.store(number + 1, Ordering::SeqCst);
    }
}

/// Keeps the longest time without a message.
fn gap(tally: &Tally, before: &mut Instant) {
    tally.largest("gap_ms", u64::try_from(before.elapsed().as_millis()).unwrap_or(u64::MAX));
    *before = Instant::now();
}

/// Listens for the one connection.
pub(crate) fn listen(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// Sends back what one guest sends, until the word to stop; the guest may take its time to come, and must not come twice.
pub(crate) fn echo(listener: &TcpListener, stop: &Stop, tally: &Tally) {
    let accepted = listener.set_nonblocking(true).and_then(|()| {
        loop {
            match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && stop.pause(LOOK) => {}
                came => break came,
            }
        }
    });
    if stop.is_set() {
        return;
    }
    let setup = accepted.and_then(|(stream, _)| {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        Ok(stream)
    });
    let mut stream = match setup {
        Ok(stream) => stream,
        Err(error) => return tally.fault(format!("waiting for the guest: {error}")),
    };
    let mut before = Instant::now();
    for number in 0.. {
        let came = read(&mut stream, number, &|| !stop.is_set());
        gap(tally, &mut before);
        let message = match came {
            Ok(message) => message,
            Err(Miss::GivenUp) => return,
            Err(Miss::Broken(what)) => return tally.fault(what),
        };
        if let Err(error) = stream.write_all(&message.bytes()) {
            return tally.fault(format!("sending message {number} back: {error}"));
        }
        tally.done();
        if listener.accept().is_ok() {
            tally.fault("the guest connected a second time");
        }
        if message.body.is_empty() {
            // The guest goes first.
            while stop.pause(LOOK) {}
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(tally: &Tally) -> (u64, u64) {
        let report = tally.report();
        (report["done"].as_u64().unwrap(), report["faults"].as_u64().unwrap())
    }

    #[test]
    fn messages_go_there_and_back_in_order() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, end, near, far) = (Stop::default(), Stop::default(), Tally::default(), Tally::default());
        thread::scope(|scope| {
            scope.spawn(|| echo(&listener, &end, &far));
            let guest = scope.spawn(|| connect(&address, 1000, &stop, &near));
            while counts(&near).0 < 200 {
                assert!(stop.pause(Duration::from_millis(10)));
            }
            stop.set();
            guest.join().unwrap();
            end.set();
        });
        let gap = near.report()["figures"]["gap_ms"].as_u64().unwrap();
        assert!(gap < 60_000, "{gap}");
        assert_eq!((counts(&near).1, counts(&far).1), (0, 0), "{:?} {:?}", near.report(), far.report());
    }

    #[test]
    fn what_is_lost_doubled_or_changed_is_found() {
        let listener = listen("127.0.0.1:0").unwrap();
        let mut output = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut input, _) = listener.accept().unwrap();
        let always = || true;
        let mut broken = Message::new(1).bytes();
        *broken.last_mut().unwrap() ^= 1;
        for bytes in [Message::new(0).bytes(), Message::new(0).bytes(), broken] {
            output.write_all(&bytes).unwrap();
        }
        let said = |result: Result<Message, Miss>| format!("{:?}", result.unwrap_err());
        assert_eq!(read(&mut input, 0, &always).unwrap().number, 0);
        let doubled = said(read(&mut input, 1, &always));
        assert!(doubled.contains("message 1: number 0"), "{doubled}");
        // The body of the doubled one is still to be read.
        read_exact(&mut input, &mut Message::new(0).body, &always).unwrap();
        let changed = said(read(&mut input, 1, &always));
        assert!(changed.contains("checksum"), "{changed}");
        drop(output);
        assert!(said(read(&mut input, 2, &always)).contains("closed"));
    }
}
