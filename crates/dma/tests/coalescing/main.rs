//! That neighbours become one mapping is invisible: devices see with a batch what they see with one
//! map for each buffer, and what is refused one by one is refused as a batch.
//!
//! What the fuzzer has found worth keeping is replayed, and random batches are tried.
#![expect(
    unsafe_code,
    reason = "maps memory by address, on a simulated IOMMU that never touches it"
)]

mod check;

use std::path::Path;

use proptest::prelude::*;

use self::check::{buffers, check_both};

#[test]
fn the_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/batch");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus").flatten() {
        let bytes = std::fs::read(entry.path()).expect("a file");
        check_both(&bytes);
        replayed += usize::from(!buffers(&bytes).is_empty());
    }
    assert!(replayed > 0, "there is no corpus");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_batch_that_shows_the_same(bytes in prop::collection::vec(any::<u8>(), 4..256)) {
        check_both(&bytes);
    }

    /// Buffers close to each other, so that most have neighbours.
    #[test]
    fn neighbours_are_a_batch_that_shows_the_same(
        list in prop::collection::vec((0..0x80_u8, 0..24_u8, 0..3_u8, 0..2_u8), 1..32),
    ) {
        let bytes: Vec<u8> = list.iter().flat_map(|(a, b, c, d)| [*a, *b, *c, *d]).collect();
        check_both(&bytes);
    }
}
