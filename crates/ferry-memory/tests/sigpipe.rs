//! A closed socket must not kill a process that left `SIGPIPE` as it is. A file of its own, because
//! the setting is the whole process's.

#![allow(unsafe_code, reason = "only libc sets what a signal does")]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ferry_memory::{GuestRam, IoError, Layout, PageRange, Span, send_pages};

#[test]
fn a_closed_socket_is_an_error_and_no_signal() {
    // SAFETY: puts back the default action; no handler of Rust code is involved.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_ne!(before, libc::SIG_ERR);

    let ram = GuestRam::anonymous(&Layout::new(vec![Span { start: 0, length: 0x1000 }]).unwrap()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let error = send_pages(&ram, near.as_fd(), b"", &[PageRange { first: 0, count: 1 }], b"").unwrap_err();
    assert!(matches!(error, IoError::Os { moved: 0, .. }), "{error:?}");
}
