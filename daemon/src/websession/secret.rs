//! Secrets of links and sessions: random words of which only a hash is kept.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

/// What is kept of a secret.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Whether it is the hash of the same secret. How long that takes tells nothing of where they differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A fresh secret of 64 hexadecimal digits: 244 random bits, and what is kept of it.
pub(super) fn fresh() -> (String, Hash) {
    let text = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let hash = Hash::of(&text);
    (text, hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_hash_and_no_two_are_alike() {
        let (one, hash) = fresh();
        let (two, other) = fresh();
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, two);
        assert!(hash.is(&Hash::of(&one)) && !hash.is(&other) && !hash.is(&Hash::of(&one[1..])));
        assert!(!format!("{hash:?}").contains(&one));
    }
}
