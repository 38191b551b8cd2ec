//! Reading and writing native-endian fields of a byte buffer without trusting its length.

/// The `u16` at `at`, if it is there.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The `u32` at `at`, if it is there.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The `u64` at `at`, if it is there.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Appends each word in the machine's byte order.
pub(crate) fn push_u32s(bytes: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
}

/// A slice length as the `u32` the kernel's size fields are.
///
/// Nothing this crate sends comes near the limit; saturating makes the kernel answer `EINVAL`
/// instead of seeing a small wrong number.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A byte count as the `u64` of an ioctl field.
pub(crate) fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
