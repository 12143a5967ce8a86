//! A link that can be cut, held up and healed: a small TCP proxy in the test's process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a pipe that waits for bytes looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// They pass.
    Open,
    /// They pass, each piece so much later.
    Slow(Duration),
    /// Nothing passes, and nobody is told: a half-open connection.
    Held,
    /// Links end, and new ones end at once.
    Cut,
}

#[derive(Debug)]
struct Shared {
    way: Mutex<Way>,
    changed: Condvar,
    over: AtomicBool,
    to: SocketAddr,
}

/// A proxy to one address; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            way: Mutex::new(Way::Open),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
            to: address.parse().unwrap(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&listener, &serving));
        Self { address: own, shared, thread: Some(thread) }
    }

    /// From now on, for links that are there and new ones.
    pub(crate) fn set(&self, way: Way) {
        *self.shared.way.lock().unwrap_or_else(PoisonError::into_inner) = way;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.set(Way::Cut);
        // The listener waits for one more.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn way(&self) -> Way {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while bytes are held up; whether they pass then.
    fn passes(&self) -> bool {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.changed.wait_while(way, |way| *way == Way::Held);
        let way = *held.unwrap_or_else(PoisonError::into_inner);
        if let Way::Slow(delay) = way {
            super::let_pass(delay);
        }
        way != Way::Cut
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut pipes = Vec::new();
    for from in listener.incoming().flatten() {
        if shared.over.load(Ordering::SeqCst) {
            break;
        }
        if shared.way() == Way::Cut {
            continue;
        }
        let Ok(to) = TcpStream::connect(shared.to) else { continue };
        for (from, to) in [(&from, &to), (&to, &from)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(shared);
            pipes.push(std::thread::spawn(move || pass(&from, &to, &shared)));
        }
    }
    for pipe in pipes {
        drop(pipe.join());
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) {
    let mut bytes = vec![0; 64 << 10];
    from.set_read_timeout(Some(LOOK)).unwrap();
    loop {
        let read = match from.read(&mut bytes) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.way() == Way::Cut {
                    break;
                }
                continue;
            }
            Err(_) => 0,
        };
        if !shared.passes() {
            break;
        }
        if read == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
