//! What is wrong with a configuration, where, and what to do about it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// A configuration that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read {}: {message}; {way_out}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's word for it.
        message: String,
        /// What to do.
        way_out: String,
    },
    /// A line of the file is wrong.
    #[error("{}:{line}: {key}: {message}; {way_out}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key that the line sets.
        key: String,
        /// What is wrong with it.
        message: String,
        /// What to do.
        way_out: String,
    },
    /// An argument is wrong.
    #[error("{argument}: {message}; {way_out}")]
    Argument {
        /// As it was given.
        argument: String,
        /// What is wrong with it.
        message: String,
        /// What to do.
        way_out: String,
    },
}

/// The text of a file, for errors that name a place in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// The file.
    pub file: &'a Path,
    /// Its text.
    pub text: &'a str,
}

impl Source<'_> {
    /// An error at a byte range of the text.
    pub(super) fn error(
        &self,
        span: Option<Range<usize>>,
        key: &str,
        message: impl Into<String>,
        way_out: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Line {
            file: self.file.to_owned(),
            line: self.line_of(span.map_or(0, |span| span.start)),
            key: key.to_owned(),
            message: message.into(),
            way_out: way_out.into(),
        }
    }

    /// The line that a byte is in, counted from 1.
    pub(super) fn line_of(&self, start: usize) -> usize {
        let before = self.text.get(..start.min(self.text.len())).unwrap_or("");
        before.matches('\n').count() + 1
    }

    /// The key of the line that a byte range begins in; the text itself for a lone word.
    pub(super) fn key_at(&self, span: Option<&Range<usize>>) -> String {
        let start = span.map_or(0, |span| span.start).min(self.text.len());
        let from = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[from..].lines().next().unwrap_or("").trim();
        let key = line.split('=').next().unwrap_or("").trim();
        if key.is_empty() { "(file)".to_owned() } else { key.chars().take(60).collect() }
    }
}
