//! One suite for every host: random sequences of operations, recorded on one host and replayed on
//! another, answer for answer and errno for errno.
//!
//! A [`Trace`] names seats and slots, never addresses, group numbers or ids, so a trace of a real
//! kernel replays on a simulated one. After every operation the state that an outsider sees is
//! written down too: whether groups are free, and the driver of each seat.
//!
//! ```
//! use berth_host::{conformance::{self, Options, Seats}, sim::SimHost};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let seats = Seats {
//!     single: "0000:00:05.0".parse()?,
//!     pair: ["0000:02:01.0".parse()?, "0000:02:02.0".parse()?],
//!     mixed: None,
//! };
//! let trace = conformance::record(&SimHost::builtin("small")?, &seats, &Options::default(), 7)?;
//! let again = conformance::replay(&trace, &SimHost::builtin("small")?, &seats)?;
//! assert_eq!(again, None);
//! # Ok(())
//! # }
//! ```

mod generate;
mod op;
mod rng;
mod stage;

pub use self::op::{After, Bank, Entry, Op, Seat, Trace};
use self::{generate::Generator, stage::Stage};
use crate::{BackendKind, Host, HostError, PciAddress};

/// Which devices of a host the suite may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// A device that is alone in its group.
    pub single: PciAddress,
    /// Two devices that share a group with nobody but bridges.
    pub pair: [PciAddress; 2],
    /// A group with a device that a host driver likes.
    pub mixed: Option<Mixed>,
}

/// A group of a device for VFIO and a sibling on a host driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mixed {
    /// The one for VFIO.
    pub device: PciAddress,
    /// The one with a host driver at the start.
    pub sibling: PciAddress,
    /// That driver.
    pub driver: String,
}

/// What sequences are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Back ends to use.
    pub backends: Vec<BackendKind>,
    /// Operations in a sequence.
    pub length: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { backends: vec![BackendKind::Iommufd, BackendKind::Type1], length: 24 }
    }
}

/// The first operation of a sequence that two hosts answer differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The sequence.
    pub seed: u64,
    /// The operation's index in it.
    pub index: usize,
    /// What was recorded.
    pub recorded: Entry,
    /// What the other host did.
    pub replayed: Entry,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |entry: &Entry| serde_json::to_string(entry).unwrap_or_default();
        write!(
            f,
            "sequence {}, operation {}: recorded {}, replayed {}",
            self.seed,
            self.index,
            line(&self.recorded),
            line(&self.replayed)
        )
    }
}

/// Runs the random sequence of `seed` and writes down every answer. The host is left as at the
/// start of the sequence: the seats on vfio-pci, the sibling on its driver.
///
/// # Errors
/// The seats aren't there, or can't be brought to where a sequence starts.
pub fn record(
    host: &dyn Host,
    seats: &Seats,
    options: &Options,
    seed: u64,
) -> Result<Trace, HostError> {
    record_watched(host, seats, options, seed, &mut |_| {})
}

/// As [`record`]; `before` hears of each operation before it is run, so that somebody knows which
/// one a kernel doesn't come back from.
///
/// # Errors
/// As [`record`].
pub fn record_watched(
    host: &dyn Host,
    seats: &Seats,
    options: &Options,
    seed: u64,
    before: &mut dyn FnMut(Op),
) -> Result<Trace, HostError> {
    let mut stage = Stage::set(host, seats)?;
    let mut generator = Generator::new(options, seats, seed);
    let mut entries = Vec::with_capacity(options.length + 1);
    for _ in 0..options.length {
        let op = generator.next(&stage);
        before(op);
        entries.push(stage.run(op));
    }
    before(Op::Finish);
    entries.push(stage.run(Op::Finish));
    Ok(Trace { seed, entries })
}

/// Runs a recorded sequence on a host and gives the first difference.
///
/// # Errors
/// As [`record`].
pub fn replay(
    trace: &Trace,
    host: &dyn Host,
    seats: &Seats,
) -> Result<Option<Divergence>, HostError> {
    let mut stage = Stage::set(host, seats)?;
    for (index, recorded) in trace.entries.iter().enumerate() {
        let replayed = stage.run(recorded.op);
        if replayed != *recorded {
            let recorded = recorded.clone();
            return Ok(Some(Divergence { seed: trace.seed, index, recorded, replayed }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
