//! Where a file can be changed: operators, arms of matches and their guards, by position.

use std::{collections::HashMap, ops::Range};

use anyhow::{Context as _, Result};
use proc_macro2::{LineColumn, Span};
use syn::{
    BinOp, Expr, UnOp,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// Line and column, both from 1, the column in characters: as cargo-mutants counts.
pub(super) type Position = (usize, usize);

/// An operator between two expressions. All ranges are bytes of the file.
#[derive(Debug, Clone)]
pub(super) struct Binary {
    pub(super) whole: Range<usize>,
    pub(super) left: Range<usize>,
    pub(super) operator: Range<usize>,
    pub(super) right: Range<usize>,
    /// A `let` of a chain stands in it: it is no expression of its own.
    pub(super) binds: bool,
}

/// An arm of a match.
#[derive(Debug, Clone)]
pub(super) struct Arm {
    pub(super) pattern: Range<usize>,
    pub(super) guard: Option<Range<usize>>,
    /// Its guard has a `let`.
    pub(super) binds: bool,
}

/// All of a file, by where each begins: a binary expression by its operator.
#[derive(Debug, Default)]
pub(super) struct Points {
    pub(super) binary: HashMap<Position, Binary>,
    /// `!` with what it negates.
    pub(super) not: HashMap<Position, Range<usize>>,
    pub(super) arms: HashMap<Position, Arm>,
    pub(super) lines: Lines,
}

/// The text's lines.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<(usize, String)>);

impl Lines {
    fn of(text: &str) -> Self {
        let mut at = 0;
        let lines = text.split_inclusive('\n').map(|line| {
            let begin = at;
            at += line.len();
            (begin, line.to_owned())
        });
        Self(lines.collect())
    }

    /// The byte at a position.
    pub(super) fn byte(&self, (line, column): Position) -> Option<usize> {
        let (begin, text) = self.0.get(line.checked_sub(1)?)?;
        let within = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        Some(begin + within.into_iter().nth(column.checked_sub(1)?)?)
    }
}

impl Points {
    pub(super) fn of(text: &str) -> Result<Self> {
        let file = syn::parse_file(text).context("not Rust")?;
        let mut finder = Finder { points: Self { lines: Lines::of(text), ..Self::default() } };
        finder.visit_file(&file);
        Ok(finder.points)
    }
}

struct Finder {
    points: Points,
}

fn position(at: LineColumn) -> Position {
    (at.line, at.column + 1)
}

impl Finder {
    fn range(&self, span: Span) -> Option<Range<usize>> {
        let byte = |at| self.points.lines.byte(position(at));
        Some(byte(span.start())?..byte(span.end())?)
    }

    fn binary(&mut self, binary: &syn::ExprBinary) -> Option<()> {
        let operator = binary.op.span();
        let point = Binary {
            whole: self.range(binary.span())?,
            left: self.range(binary.left.span())?,
            operator: self.range(operator)?,
            right: self.range(binary.right.span())?,
            binds: binds(&binary.left) || binds(&binary.right),
        };
        self.points.binary.insert(position(operator.start()), point);
        Some(())
    }

    fn arm(&mut self, arm: &syn::Arm) -> Option<()> {
        let guard = arm.guard.as_ref().map(|(_, guard)| guard);
        let point = Arm {
            pattern: self.range(arm.pat.span())?,
            guard: guard.and_then(|guard| self.range(guard.span())),
            binds: guard.is_some_and(|guard| binds(guard)),
        };
        self.points.arms.insert(position(arm.span().start()), point);
        Some(())
    }
}

/// Whether a condition is a chain with a `let` in it.
fn binds(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) if matches!(binary.op, BinOp::And(_)) => {
            binds(&binary.left) || binds(&binary.right)
        }
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        self.binary(binary);
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        if let UnOp::Not(not) = &unary.op
            && let Some(whole) = self.range(unary.span())
        {
            self.points.not.insert(position(not.span().start()), whole);
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.arm(arm);
        visit::visit_arm(self, arm);
    }
}
