//! The body of files with a guest in them.

use std::io::Write;

use ferry_migrate::oneway::{Survey, survey};
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, Header, PageHead, encode};

/// A file that `ferry migrate --to file:PATH` might have written: whatever it says, a look at it ends, with
/// what is known or with the place of what is wrong.
pub fn file(bytes: &[u8]) {
    let Some(found) = surveyed(bytes) else { return };
    assert!(found.damage.is_some() || found.file_bytes == bytes.len() as u64);
    holds(&found);
    // A hostile writer computes the checksums as well as anybody.
    let sealed = seal(bytes);
    let Some(found) = surveyed(&sealed) else { return };
    holds(&found);
    if found.damage.is_none() {
        assert!(found.custody.is_some(), "a file is whole only with its custody");
        let rest = usize::try_from(found.custody_end).ok().and_then(|end| sealed.get(end..));
        assert_eq!(found.taken.is_some(), rest.is_some_and(|rest| !rest.is_empty()));
        // Cut anywhere before its custody ends it is not whole.
        for part in [1, 2, 3] {
            let cut = usize::try_from(found.custody_end * part / 4).unwrap_or(0);
            let of_part = sealed.get(..cut).and_then(surveyed);
            assert!(of_part.is_none_or(|found| found.damage.is_some()), "half a file counts as whole");
        }
    }
}

fn surveyed(bytes: &[u8]) -> Option<Survey> {
    let mut file = tempfile::NamedTempFile::new().ok()?;
    file.write_all(bytes).ok()?;
    survey(file.path()).ok()
}

/// What holds of every file, whole or not.
fn holds(found: &Survey) {
    assert!(found.offer.is_none() || found.hello.is_some());
    assert!(found.custody.is_none() || found.last_round_done, "custody comes last");
    assert!(found.taken.is_none() || found.taken.as_ref().map(|taken| taken.of) == found.custody);
    assert!(found.data_pages.saturating_mul(4096) <= found.file_bytes, "pages that are not there");
    assert!(found.custody_end <= found.file_bytes);
}

/// The same frames with checksums that fit.
fn seal(bytes: &[u8]) -> Vec<u8> {
    let (mut sealed, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::parse(header)
        && let Some((head, after)) = after.split_at_checked(header.head_bytes)
    {
        sealed.extend(encode(header.kind, head));
        let data = match header.kind {
            FrameKind::Pages => PageHead::parse(header.kind, head).map_or(0, |head| head.data_bytes()),
            _ => 0,
        };
        let data = usize::try_from(data).unwrap_or(usize::MAX).min(after.len());
        let (data, after) = after.split_at(data);
        sealed.extend(data);
        rest = after;
    }
    sealed.extend(rest);
    sealed
}
