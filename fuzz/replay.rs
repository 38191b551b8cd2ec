//! What the fuzzers found worth keeping, checked anew in every run of the tests.

use std::path::Path;

/// Checks every file of a target's corpus.
pub(crate) fn replay(target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|above| above.join("fuzz/corpus").join(target))
        .find(|corpus| corpus.is_dir())
        .expect("a corpus in the tree");
    let mut replayed = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus").flatten() {
        let bytes = std::fs::read(entry.path()).expect("a file of the corpus");
        eprintln!("{}", entry.path().display());
        check(&bytes);
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", corpus.display());
}
