//! Programs that run beside: started once, asked for slices over a pipe.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// A program that answers each line with one.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(program: &Path, words: &[impl AsRef<OsStr>]) -> Result<Self> {
        let name = program.display().to_string();
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { name, child, input, output })
    }

    /// Runs a slice; the answer is a count per second.
    ///
    /// # Errors
    /// The program ended.
    pub(crate) fn slice(&mut self, length: Duration) -> Result<f64> {
        let [count, seconds] = self.ask(length)?;
        Ok(count / seconds.max(1e-9))
    }

    /// Runs a slice; the answer is as many numbers as the program says of one.
    ///
    /// # Errors
    /// The program ended.
    pub(crate) fn ask<const COUNT: usize>(&mut self, length: Duration) -> Result<[f64; COUNT]> {
        let input = self.input.as_mut().context("the program has ended")?;
        writeln!(input, "{}", length.as_millis()).context("ask for a slice")?;
        let line = self.line()?;
        let words: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        let numbers = words.ok().and_then(|words| <[f64; COUNT]>::try_from(words).ok());
        numbers.with_context(|| format!("{} answers {line:?}", self.name))
    }

    /// The next line that it says.
    ///
    /// # Errors
    /// It ended.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("read its answer")?;
        if line.is_empty() {
            bail!("{} has ended", self.name);
        }
        Ok(line)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.input.take());
        // What it measured is known already.
        let _ = self.child.wait();
    }
}
