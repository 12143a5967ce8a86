//! What a host says on one stream: bytes, and the mark that ends a step.
//!
//! `steps.sh` writes the mark: a zero byte, `lab-end:`, a word that no other run knows, the status, a new
//! line. Everything before it belongs to the step.

/// One stream, cut at its marks.
#[derive(Debug)]
pub(crate) struct Stream {
    mark: Vec<u8>,
    held: Vec<u8>,
}

impl Stream {
    /// A stream whose marks carry that word.
    pub(crate) fn new(word: &str) -> Self {
        Self { mark: format!("\0lab-end:{word} ").into_bytes(), held: Vec::new() }
    }

    /// Takes what came; answers with what is no mark, and with the status if a mark came. What stands
    /// behind a mark is kept for the next step.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<i32>) {
        self.held.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(zero) = self.held[from..].iter().position(|byte| *byte == 0).map(|at| from + at) {
            let rest = &self.held[zero..];
            if rest.starts_with(&self.mark) {
                let Some(line) = rest.iter().position(|byte| *byte == b'\n') else {
                    return (self.take(zero), None);
                };
                let status =
                    String::from_utf8_lossy(&rest[self.mark.len()..line]).trim().parse().unwrap_or(-1);
                let said = self.take(zero);
                self.held.drain(..=line);
                return (said, Some(status));
            }
            if self.mark.starts_with(rest) {
                return (self.take(zero), None);
            }
            from = zero + 1;
        }
        (self.take(self.held.len()), None)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.held.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_the_bytes_are_cut() {
        let text = b"one\0two\0\0lab-end:other 1\n\0lab-end:word 7\nnext".as_slice();
        for cut in 0..text.len() {
            let mut stream = Stream::new("word");
            let (mut said, mut status) = stream.push(&text[..cut]);
            let (more, later) = stream.push(&text[cut..]);
            let mut behind = Vec::new();
            if status.is_none() {
                said.extend(more);
                status = later;
                behind.extend(stream.push(b"!").0);
            } else {
                behind.extend(more);
                behind.extend(b"!");
            }
            assert_eq!(said, b"one\0two\0\0lab-end:other 1\n", "cut at {cut}");
            assert_eq!(status, Some(7));
            assert_eq!(behind, b"next!");
        }
    }

    #[test]
    fn nothing_is_held_back_that_cannot_become_a_mark() {
        let mut stream = Stream::new("word");
        assert_eq!(stream.push(b"a line\n"), (b"a line\n".to_vec(), None));
        assert_eq!(stream.push(b"\0lab-end:w"), (Vec::new(), None));
        assert_eq!(stream.push(b"ine"), (b"\0lab-end:wine".to_vec(), None));
    }
}
