//! An nvme of a machine under test, driven as its guest would: registers, queues and buffers in the
//! guest's memory, all by [`Qtest`]. What it reads and writes there it moves by its own DMA.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{qtest::Qtest, wait_for};

/// Bytes of a logical block.
pub const BLOCK: usize = 512;

/// Where its registers go: above the guest's memory, below the interrupt controllers.
const BAR: u64 = 0xe000_0000;
/// Where the queues and the buffer are in the guest's memory.
const ADMIN: Queue = Queue { number: 0, submissions: 0x10_0000, completions: 0x10_1000 };
const IO: Queue = Queue { number: 1, submissions: 0x10_2000, completions: 0x10_3000 };
const BUFFER: u64 = 0x10_4000;
/// Entries of every queue.
const ENTRIES: u32 = 64;

const IDS: u32 = 0x0010_1b36;

#[derive(Debug, Clone, Copy)]
struct Queue {
    number: u32,
    submissions: u64,
    completions: u64,
}

/// The controller.
#[derive(Debug)]
pub struct Nvme {
    qtest: Qtest,
    patience: Duration,
    /// Commands given to each queue.
    given: [u32; 2],
}

impl Nvme {
    /// Finds it on bus 0 of the machine, and sets it and its queues up.
    ///
    /// # Errors
    /// There is none, or it doesn't come up.
    pub fn start(mut qtest: Qtest, patience: Duration) -> Result<Self> {
        let mut found = None;
        for slot in 0..32 {
            if qtest.config_read(slot, 0)? == IDS {
                found = Some(slot);
            }
        }
        let slot = found.context("the machine under test has no nvme")?;
        println!("QEMU's nvme is in slot {slot:#x}");
        qtest.config_write(slot, 0x10, u32::try_from(BAR)?)?;
        qtest.config_write(slot, 0x14, 0)?;
        // Memory space, and bus master.
        let command = qtest.config_read(slot, 0x4)?;
        qtest.config_write(slot, 0x4, command | 0x6)?;
        let mut nvme = Self { qtest, patience, given: [0; 2] };
        nvme.enable()?;
        nvme.make_queues()?;
        Ok(nvme)
    }

    fn enable(&mut self) -> Result<()> {
        let (cc, aqa, asq, acq) = (BAR + 0x14, BAR + 0x24, BAR + 0x28, BAR + 0x30);
        self.qtest.write32(cc, 0)?;
        self.until_ready(false)?;
        for address in (ADMIN.submissions..BUFFER).step_by(4096) {
            self.qtest.write(address, &[0; 4096])?;
        }
        self.qtest.write32(aqa, ((ENTRIES - 1) << 16) | (ENTRIES - 1))?;
        for (register, queue) in [(asq, ADMIN.submissions), (acq, ADMIN.completions)] {
            self.qtest.write32(register, u32::try_from(queue)?)?;
            self.qtest.write32(register + 4, 0)?;
        }
        // 64 bytes a submission, 16 a completion, on.
        self.qtest.write32(cc, (4 << 20) | (6 << 16) | 1)?;
        self.until_ready(true)
    }

    fn until_ready(&mut self, ready: bool) -> Result<()> {
        let qtest = &mut self.qtest;
        wait_for(&format!("the nvme to be ready: {ready}"), self.patience, || {
            let status = qtest.read32(BAR + 0x1c).ok()?;
            ((status & 1 == 1) == ready).then_some(())
        })
    }

    fn make_queues(&mut self) -> Result<()> {
        let size = ((ENTRIES - 1) << 16) | IO.number;
        // In one piece of memory; the submissions' completions go to the queue of the same number.
        self.command(
            ADMIN,
            Command { opcode: 5, prp: IO.completions, dwords: [size, 1, 0], ..Command::default() },
        )?;
        let to = (IO.number << 16) | 1;
        self.command(
            ADMIN,
            Command { opcode: 1, prp: IO.submissions, dwords: [size, to, 0], ..Command::default() },
        )
    }

    /// Reads blocks into the guest's memory, and those from there.
    ///
    /// # Errors
    /// The controller's.
    pub fn read(&mut self, block: u32, length: usize) -> Result<Vec<u8>> {
        self.qtest.write(BUFFER, &vec![0; length])?;
        self.transfer(2, block, length)?;
        self.qtest.read(BUFFER, length)
    }

    /// Writes to the guest's memory, and blocks from there.
    ///
    /// # Errors
    /// The controller's.
    pub fn write(&mut self, block: u32, bytes: &[u8]) -> Result<()> {
        self.qtest.write(BUFFER, bytes)?;
        self.transfer(1, block, bytes.len())
    }

    fn transfer(&mut self, opcode: u32, block: u32, length: usize) -> Result<()> {
        ensure!(length.is_multiple_of(BLOCK) && (BLOCK..=4096).contains(&length), "{length} bytes");
        let last = u32::try_from(length / BLOCK)? - 1;
        self.command(IO, Command { opcode, namespace: 1, prp: BUFFER, dwords: [block, 0, last] })
    }

    /// Gives one command and waits for its completion.
    fn command(&mut self, queue: Queue, command: Command) -> Result<()> {
        let given = &mut self.given[usize::try_from(queue.number)?];
        let (at, round, id) = (*given % ENTRIES, *given / ENTRIES, *given + 1);
        ensure!(id < 0x1_0000, "commands have numbers of 16 bits");
        *given = id;
        // The controller tells what it has answered by a bit that is another one each time round.
        let phase = if round.is_multiple_of(2) { 0x1_0000 } else { 0 };
        self.qtest.write(queue.submissions + u64::from(at) * 64, &command.bytes(id))?;
        // Doorbells are 8 bytes a queue: of its submissions, of its completions.
        let doorbell = BAR + 0x1000 + u64::from(queue.number) * 8;
        self.qtest.write32(doorbell, id % ENTRIES)?;
        let completion = queue.completions + u64::from(at) * 16 + 12;
        let qtest = &mut self.qtest;
        let status = wait_for(&format!("the nvme to do {command:?}"), self.patience, || {
            let word = qtest.read32(completion).ok()?;
            (word & 0x1_0000 == phase).then_some(word)
        })?;
        self.qtest.write32(doorbell + 4, id % ENTRIES)?;
        ensure!(status & 0xffff == id, "command {id} was answered as {status:#x}");
        ensure!(status >> 17 == 0, "{command:?} failed: status {:#x}", status >> 17);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Command {
    opcode: u32,
    namespace: u32,
    prp: u64,
    dwords: [u32; 3],
}

impl Command {
    fn bytes(&self, id: u32) -> [u8; 64] {
        let mut bytes = [0; 64];
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, self.opcode | (id << 16));
        put(4, self.namespace);
        for (at, value) in [40, 44, 48].into_iter().zip(self.dwords) {
            put(at, value);
        }
        bytes[24..32].copy_from_slice(&self.prp.to_le_bytes());
        bytes
    }
}
