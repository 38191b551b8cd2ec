//! QEMU's test protocol: what a guest's processor would do, done from outside, so that nothing has to
//! run in the guest. One line a request, one an answer.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, bail, ensure};

/// A machine under test.
#[derive(Debug)]
pub struct Qtest {
    socket: BufReader<UnixStream>,
}

impl Qtest {
    /// Of a connection that QEMU made with `-qtest unix:PATH`.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { socket: BufReader::new(socket) }
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        let line = format!("{request}\n");
        self.socket.get_mut().write_all(line.as_bytes()).context("ask QEMU")?;
        let mut answer = String::new();
        self.socket.read_line(&mut answer).with_context(|| format!("the answer to {request}"))?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("OK", rest) => Ok(rest.to_owned()),
            _ => bail!("{request}: {answer:?}"),
        }
    }

    fn number(&mut self, request: &str) -> Result<u64> {
        let answer = self.ask(request)?;
        let digits = answer.strip_prefix("0x").with_context(|| format!("{request}: {answer}"))?;
        Ok(u64::from_str_radix(digits, 16)?)
    }

    /// Reads a function's configuration space on bus 0.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn config_read(&mut self, slot: u32, register: u32) -> Result<u32> {
        self.select(slot, register)?;
        Ok(u32::try_from(self.number("inl 0xcfc")?)?)
    }

    /// Writes to it.
    ///
    /// # Errors
    /// As [`Qtest::config_read`].
    pub fn config_write(&mut self, slot: u32, register: u32, value: u32) -> Result<()> {
        self.select(slot, register)?;
        self.ask(&format!("outl 0xcfc {value:#x}")).map(drop)
    }

    fn select(&mut self, slot: u32, register: u32) -> Result<()> {
        let address = 0x8000_0000 | (slot << 11) | register;
        self.ask(&format!("outl 0xcf8 {address:#x}")).map(drop)
    }

    /// Reads 32 bits at a physical address.
    ///
    /// # Errors
    /// As [`Qtest::config_read`].
    pub fn read32(&mut self, address: u64) -> Result<u32> {
        Ok(u32::try_from(self.number(&format!("readl {address:#x}"))?)?)
    }

    /// Writes 32 bits at a physical address.
    ///
    /// # Errors
    /// As [`Qtest::config_read`].
    pub fn write32(&mut self, address: u64, value: u32) -> Result<()> {
        self.ask(&format!("writel {address:#x} {value:#x}")).map(drop)
    }

    /// Reads memory.
    ///
    /// # Errors
    /// As [`Qtest::config_read`].
    pub fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        let answer = self.ask(&format!("read {address:#x} {length:#x}"))?;
        let digits = answer.strip_prefix("0x").context("no bytes")?.as_bytes();
        ensure!(digits.len() == 2 * length, "{} digits for {length} bytes", digits.len());
        let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
        digits.chunks(2).map(byte).collect()
    }

    /// Writes memory.
    ///
    /// # Errors
    /// As [`Qtest::config_read`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut request = format!("write {address:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            write!(request, "{byte:02x}")?;
        }
        self.ask(&request).map(drop)
    }
}
