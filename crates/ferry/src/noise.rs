//! Random bytes for benchmarks: no page of them compresses, none is zero.

/// Fills whole words of eight bytes and leaves the generator (xorshift64) where the next call goes on. A
/// state of zero would stay zero.
pub(crate) fn fill(bytes: &mut [u8], state: &mut u64) {
    for word in bytes.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}
