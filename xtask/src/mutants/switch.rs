//! All mutants of a file in one text, each switched on at run time by its number.
//!
//! To build a program once and run it a thousand times takes minutes, where to build it a thousand
//! times takes hours. What can't be written this way is left to cargo-mutants itself.

use std::{collections::BTreeMap, ops::Range};

use anyhow::{Context as _, Result};

use super::{
    outcome::Mutant,
    points::{Points, Position},
};

/// The module that every changed crate gets.
pub(super) const MODULE: &str = r#"//! Which mutant this process is.
#![allow(dead_code, reason = "not every crate has every kind of mutant")]

use std::sync::LazyLock;

static CHOSEN: LazyLock<Option<u32>> =
    LazyLock::new(|| std::env::var("BERTH_MUTANT").ok()?.parse().ok());

pub(crate) fn on(number: u32) -> bool {
    *CHOSEN == Some(number)
}

/// Compares by the operator of the mutant that is on, else by its own.
pub(crate) fn compare<A: ?Sized + PartialOrd<B>, B: ?Sized>(
    mutants: &[(u32, &str)],
    own: &str,
    one: &A,
    other: &B,
) -> bool {
    let chosen = mutants.iter().find(|(number, _)| on(*number));
    match chosen.map_or(own, |(_, operator)| operator) {
        "<" => one < other,
        "<=" => one <= other,
        ">" => one > other,
        ">=" => one >= other,
        "==" => one == other,
        operator => panic!("no operator: {operator}"),
    }
}
"#;

/// Text around a part of a file, or instead of it.
#[derive(Debug)]
struct Edit {
    part: Range<usize>,
    before: String,
    after: String,
    instead: Option<String>,
    /// The mutants that it is of.
    of: Vec<u32>,
}

/// A changed file.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) text: String,
    /// Where something was put in, in bytes of the text, and for which mutants.
    pub(super) places: Vec<(Range<usize>, Vec<u32>)>,
}

/// A file with the mutants switched into it, and the numbers of those that it can't have.
pub(super) fn switched(text: &str, mutants: &[(u32, &Mutant)]) -> Result<(Switched, Vec<u32>)> {
    let points = Points::of(text)?;
    let (mut edits, mut left) = (Edits::default(), Vec::new());
    for (number, mutant) in mutants {
        if edits.add(text, &points, *number, mutant).is_none() {
            left.push(*number);
        }
    }
    Ok((apply(text, edits.done()), left))
}

#[derive(Debug, Default)]
struct Edits {
    edits: Vec<Edit>,
    /// Comparisons have several mutants: operand ranges, and number with operator.
    comparisons: BTreeMap<Position, Comparison>,
}

#[derive(Debug)]
struct Comparison {
    whole: Range<usize>,
    operator: Range<usize>,
    own: String,
    mutants: Vec<(u32, String)>,
}

impl Edits {
    /// `None` for what can't be switched.
    fn add(&mut self, text: &str, points: &Points, n: u32, mutant: &Mutant) -> Option<()> {
        let at = (mutant.span.start.line, mutant.span.start.column);
        let on = format!("crate::switch::on({n})");
        match mutant.genre.as_str() {
            "FnValue" if mutant.returns_something_unnamed() => return None,
            "FnValue" => {
                let begin = points.lines.byte(at)?;
                let value = mutant.replacement.replace('\n', " ");
                self.wrap(n, begin..begin, format!("if {on} {{ return {value}; }} "), "");
            }
            "BinaryOperator" => return self.operator(text, points, n, mutant),
            "UnaryOperator" => {
                let whole = points.not.get(&at)?.clone();
                self.wrap(n, whole, format!("({on} ^ "), ")");
            }
            "MatchArm" => {
                let arm = points.arms.get(&at).filter(|arm| !arm.binds)?;
                match &arm.guard {
                    Some(guard) => self.wrap(n, guard.clone(), format!("!{on} && ("), ")"),
                    None => {
                        let end = arm.pattern.end;
                        self.wrap(n, end..end, format!(" if !{on}"), "");
                    }
                }
            }
            "MatchArmGuard" => {
                let end = (mutant.span.end.line, mutant.span.end.column);
                let guard = points.lines.byte(at)?..points.lines.byte(end)?;
                let known = |arm: &super::points::Arm| arm.guard.as_ref() == Some(&guard);
                points.arms.values().find(|arm| known(arm) && !arm.binds)?;
                match mutant.replacement.as_str() {
                    "true" => self.wrap(n, guard, format!("{on} || ("), ")"),
                    _ => self.wrap(n, guard, format!("!{on} && ("), ")"),
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn operator(&mut self, text: &str, points: &Points, n: u32, mutant: &Mutant) -> Option<()> {
        let at = (mutant.span.start.line, mutant.span.start.column);
        let binary = points.binary.get(&at).filter(|binary| !binary.binds)?;
        let turned = format!("(crate::switch::on({n}) ^ (");
        match text.get(binary.operator.clone())? {
            "==" | "!=" => self.wrap(n, binary.whole.clone(), turned, "))"),
            // By De Morgan: with all three turned it is the other operator.
            "&&" | "||" => {
                for part in [&binary.whole, &binary.left, &binary.right] {
                    self.wrap(n, part.clone(), turned.clone(), "))");
                }
            }
            own @ ("<" | "<=" | ">" | ">=") => {
                let comparison = self.comparisons.entry(at).or_insert_with(|| Comparison {
                    whole: binary.whole.clone(),
                    operator: binary.operator.clone(),
                    own: own.to_owned(),
                    mutants: Vec::new(),
                });
                comparison.mutants.push((n, mutant.replacement.clone()));
            }
            _ => return None,
        }
        Some(())
    }

    fn wrap(&mut self, n: u32, part: Range<usize>, before: String, after: &str) {
        let after = after.to_owned();
        self.edits.push(Edit { part, before, after, instead: None, of: vec![n] });
    }

    fn done(mut self) -> Vec<Edit> {
        for comparison in self.comparisons.into_values() {
            let of: Vec<u32> = comparison.mutants.iter().map(|(n, _)| *n).collect();
            let (mutants, own) = (&comparison.mutants, &comparison.own);
            self.edits.push(Edit {
                part: comparison.whole,
                before: format!("crate::switch::compare(&{mutants:?}, {own:?}, &("),
                after: "))".to_owned(),
                instead: None,
                of: of.clone(),
            });
            self.edits.push(Edit {
                part: comparison.operator,
                before: String::new(),
                after: String::new(),
                instead: Some("), &(".to_owned()),
                of,
            });
        }
        self.edits
    }
}

/// Where it stands among the others, what is put in, and of which edit.
type Piece<'a> = ((usize, bool, i64, i64), &'a str, &'a Edit);

/// What is put in at one place: ends of parts first, the innermost first of all, then beginnings,
/// the outermost first.
fn apply(text: &str, edits: Vec<Edit>) -> Switched {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for (index, edit) in edits.iter().enumerate() {
        let (index, Range { start, end }) = (signed(index), edit.part.clone());
        if let Some(instead) = &edit.instead {
            pieces.push(((start, true, 0, 0), instead, edit));
            continue;
        }
        // What has no extent stands before all that begins there.
        let extent = if start == end { i64::MIN } else { -signed(end) };
        pieces.push(((start, true, extent, index), &edit.before, edit));
        if start < end {
            pieces.push(((end, false, -signed(start), -index), &edit.after, edit));
        }
    }
    pieces.sort_by_key(|(key, _, _)| *key);
    let mut switched = Switched { text: String::new(), places: Vec::new() };
    let mut copied = 0;
    for ((at, ..), piece, edit) in pieces {
        switched.text.push_str(text.get(copied..at).unwrap_or_default());
        let begin = switched.text.len();
        switched.text.push_str(piece);
        switched.places.push((begin..switched.text.len(), edit.of.clone()));
        copied = if edit.instead.is_some() { edit.part.end } else { at };
    }
    switched.text.push_str(text.get(copied..).unwrap_or_default());
    switched
}

fn signed(at: usize) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

impl Switched {
    /// The mutants whose text the compiler complains about, when it points at a part of the file.
    pub(super) fn blamed(&self, part: &Range<usize>) -> Vec<u32> {
        let touching = |(place, _): &&(Range<usize>, Vec<u32>)| {
            place.start < part.end && part.start < place.end
        };
        let touched = self.places.iter().filter(touching);
        let mut blamed: Vec<u32> = touched.flat_map(|(_, of)| of.iter().copied()).collect();
        blamed.sort_unstable();
        blamed.dedup();
        blamed
    }
}

/// Why numbers and positions of a mutant can't be used.
pub(super) fn with_numbers(mutants: &[Mutant]) -> Result<Vec<(u32, &Mutant)>> {
    let numbered = mutants
        .iter()
        .enumerate()
        .map(|(index, mutant)| Ok((u32::try_from(index).context("too many mutants")?, mutant)));
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of the part of the line, where `part` stands for the first time.
    fn mutant(text: &str, genre: &str, part: &str, replacement: &str) -> Mutant {
        let at = text.find(part).expect("it is there") + 1;
        let value = serde_json::json!({
            "name": format!("a.rs:1:{at}: {genre}"),
            "file": "a.rs",
            "genre": genre,
            "replacement": replacement,
            "span": {
                "start": {"line": 1, "column": at},
                "end": {"line": 1, "column": at + part.len()},
            },
            "function": {"return_type": ""},
        });
        serde_json::from_value(value).unwrap()
    }

    fn text(of: &str, mutants: &[(&str, &str, &str)]) -> (String, Vec<u32>) {
        let mutants: Vec<Mutant> = mutants
            .iter()
            .map(|(genre, part, replacement)| mutant(of, genre, part, replacement))
            .collect();
        let (switched, left) = switched(of, &with_numbers(&mutants).unwrap()).unwrap();
        (switched.text.replace("crate::switch::", ""), left)
    }

    #[test]
    fn operators_are_turned_and_values_returned() {
        let changes = [
            ("FnValue", "a == 1", "true"),
            ("BinaryOperator", "==", "!="),
            ("BinaryOperator", "&&", "||"),
            ("UnaryOperator", "!", ""),
        ];
        let (found, left) = text("fn f(a: u8, b: bool) -> bool { a == 1 && !b }", &changes);
        let left_side = "(on(1) ^ ((on(2) ^ (a == 1))))";
        let right_side = "(on(2) ^ ((on(3) ^ !b)))";
        assert_eq!(
            found,
            format!(
                "fn f(a: u8, b: bool) -> bool {{ if on(0) {{ return true; }} (on(2) ^ ({left_side} && {right_side})) }}"
            )
        );
        assert!(left.is_empty());
    }

    #[test]
    fn comparisons_have_several_mutants() {
        let changes = [("BinaryOperator", ">", "<"), ("BinaryOperator", ">", ">=")];
        let (found, _) = text("fn f(a: u8, b: &mut bool) { *b = a > 1 }", &changes);
        let call = r#"compare(&[(0, "<"), (1, ">=")], ">", &(a ), &( 1))"#;
        assert_eq!(found, format!("fn f(a: u8, b: &mut bool) {{ *b = {call} }}"));
    }

    #[test]
    fn arms_go_and_guards_hold() {
        let of = "fn f(a: u8) -> u8 { match a { 1 => 2, n if n < 9 => 3, _ => 4 } }";
        let changes = [
            ("MatchArm", "1 => 2", ""),
            ("MatchArm", "n if n < 9 => 3", ""),
            ("MatchArmGuard", "n < 9", "true"),
            ("MatchArmGuard", "n < 9", "false"),
        ];
        let (found, left) = text(of, &changes);
        let guard = "!on(1) && (on(2) || (!on(3) && (n < 9)))";
        let arms = format!("1 if !on(0) => 2, n if {guard} => 3, _ => 4");
        assert_eq!(found, format!("fn f(a: u8) -> u8 {{ match a {{ {arms} }} }}"));
        assert!(left.is_empty());
    }

    #[test]
    fn what_binds_or_is_unknown_is_left() {
        let of = "fn f(a: Option<u8>) -> u8 { if let Some(b) = a && b == 1 { 1 + b } else { 0 } }";
        let changes = [
            ("BinaryOperator", "&&", "||"),
            ("BinaryOperator", "==", "!="),
            ("BinaryOperator", "+", "-"),
        ];
        let (found, left) = text(of, &changes);
        assert!(found.contains("= a && (on(1) ^ (b == 1)) {"), "{found}");
        assert_eq!(left, [0, 2]);
    }

    #[test]
    fn the_compiler_blames_what_stands_where_it_points() {
        let of = "fn f() -> u8 { g() }";
        let one = mutant(of, "FnValue", "g()", "Default::default()");
        let (switched, _) = switched(of, &[(7, &one)]).unwrap();
        let at = switched.text.find("Default").unwrap();
        assert_eq!(switched.blamed(&(at..at + 7)), [7]);
        assert!(switched.blamed(&(0..2)).is_empty());
    }
}
