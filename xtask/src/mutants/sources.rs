//! What is mutated, and which version of it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use sha2::{Digest as _, Sha256};

use crate::check;

/// The crates whose product code is mutated: package and directory.
pub(super) const CRATES: [(&str, &str); 2] =
    [("berth-ownership", "crates/ownership/src/"), ("berth-roles", "crates/roles/src/")];

/// The product files of these crates, each with the hash of its tokens: what is said in comments,
/// and how lines are broken, changes no mutant.
pub(super) fn product(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for name in files(root)?.into_iter().filter(|name| !is_test(name)) {
        let hash = of_tokens(&read(root, &name)?).with_context(|| format!("read {name}"))?;
        found.insert(name, hash);
    }
    Ok(found)
}

/// The hash of all tests that these crates have inside.
pub(super) fn tests(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in files(root)?.into_iter().filter(|name| is_test(name)) {
        hash.update(read(root, &name)?);
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// The hash of a file as it is, positions included.
pub(super) fn content(root: &Path, name: &str) -> Result<String> {
    Ok(format!("{:x}", Sha256::digest(read(root, name)?)))
}

fn files(root: &Path) -> Result<Vec<String>> {
    let all = check::rust_files(root)?;
    let ours = |name: &String| CRATES.iter().any(|(_, dir)| name.starts_with(dir));
    let mut files: Vec<String> = all.into_iter().filter(ours).collect();
    files.sort();
    Ok(files)
}

fn is_test(name: &str) -> bool {
    name.contains("/src/tests/") || name.ends_with("/src/tests.rs")
}

fn read(root: &Path, name: &str) -> Result<String> {
    fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
}

fn of_tokens(text: &str) -> Result<String> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("not Rust: {error}"))?;
    let mut hash = Sha256::new();
    feed(tokens, &mut hash);
    Ok(format!("{:x}", hash.finalize()))
}

/// All tokens but those that comments became.
fn feed(tokens: TokenStream, hash: &mut Sha256) {
    let all: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |at: usize, sign: char| matches!(all.get(at), Some(TokenTree::Punct(it)) if it.as_char() == sign);
    let mut at = 0;
    while let Some(token) = all.get(at) {
        let group = if is(at + 1, '!') { at + 2 } else { at + 1 };
        if is(at, '#') && all.get(group).is_some_and(is_documentation) {
            at = group + 1;
            continue;
        }
        if let TokenTree::Group(group) = token {
            let (open, close) = match group.delimiter() {
                Delimiter::Parenthesis => ("(", ")"),
                Delimiter::Brace => ("{", "}"),
                Delimiter::Bracket => ("[", "]"),
                Delimiter::None => ("", ""),
            };
            hash.update(open);
            feed(group.stream(), hash);
            hash.update(close);
        } else {
            hash.update(token.to_string());
            hash.update(" ");
        }
        at += 1;
    }
}

fn is_documentation(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    let first = group.stream().into_iter().next();
    matches!(first, Some(TokenTree::Ident(name)) if name == "doc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_line_breaks_are_no_other_version() {
        let one = of_tokens("/// Adds.\nfn f(a: u8) -> u8 { a + 1 }").unwrap();
        let same = of_tokens("//! Of it.\nfn f(a: u8) -> u8 {\n    // One more.\n    a + 1\n}");
        assert_eq!(one, same.unwrap());
        for other in ["fn f(a: u8) -> u8 { a + 2 }", "#[inline] fn f(a: u8) -> u8 { a + 1 }"] {
            assert_ne!(one, of_tokens(other).unwrap(), "{other}");
        }
        assert!(of_tokens("fn f( {").is_err());
    }

    #[test]
    fn the_role_table_is_product_and_its_tests_are_not() {
        let found = product(&crate::workspace::root()).unwrap();
        assert!(found.contains_key("crates/roles/src/table.rs"));
        assert!(found.contains_key("crates/ownership/src/decide/mod.rs"));
        assert!(!found.keys().any(|name| name.contains("tests")), "{found:?}");
    }
}
