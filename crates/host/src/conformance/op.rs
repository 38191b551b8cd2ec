//! Operations and what came of them.

use serde::{Deserialize, Serialize};

use crate::BackendKind;

/// A device, by its part in the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seat {
    /// Alone in its group.
    Single,
    /// The first of two.
    PairA,
    /// The second of two.
    PairB,
    /// The one with a sibling that a host driver likes.
    Mixed,
    /// That sibling.
    Sibling,
}

/// A group, by its part in the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bank {
    /// Of [`Seat::Single`].
    Single,
    /// Of [`Seat::PairA`] and [`Seat::PairB`].
    Pair,
    /// Of [`Seat::Mixed`] and [`Seat::Sibling`].
    Mixed,
}

/// One operation. Numbers are slots: what an operation opened stays in its slot until it is closed
/// or overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// Takes the kernel's hold, in a context's container or in one of its own.
    Hold {
        /// Where it is kept.
        hold: usize,
        /// The group.
        bank: Bank,
        /// The context.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        context: Option<usize>,
    },
    /// Gives a hold back.
    Unhold {
        /// The hold.
        hold: usize,
    },
    /// Opens a context.
    OpenContext {
        /// Where it is kept.
        context: usize,
        /// On which back end.
        backend: BackendKind,
    },
    /// Closes a context, with the mappings made through it.
    CloseContext {
        /// The context.
        context: usize,
    },
    /// Makes a domain.
    NewDomain {
        /// The context.
        context: usize,
        /// Where it is kept.
        domain: usize,
    },
    /// Destroys a domain; its handle stays in the slot.
    DeleteDomain {
        /// The context.
        context: usize,
        /// The domain.
        domain: usize,
    },
    /// Opens a device.
    OpenDevice {
        /// Where it is kept.
        handle: usize,
        /// The context.
        context: usize,
        /// The device.
        seat: Seat,
    },
    /// Closes a device.
    CloseDevice {
        /// The device's handle.
        handle: usize,
    },
    /// Opens a cdev, and does not bind it.
    OpenCdev {
        /// Where it is kept.
        cdev: usize,
        /// The device.
        seat: Seat,
    },
    /// Closes one that isn't bound.
    CloseCdev {
        /// It.
        cdev: usize,
    },
    /// Asks how many devices are bound to a context.
    BoundDevices {
        /// The context.
        context: usize,
    },
    /// Attaches to a domain of the context that the device was opened in.
    Attach {
        /// The device's handle.
        handle: usize,
        /// The domain.
        domain: usize,
    },
    /// Detaches.
    Detach {
        /// The device's handle.
        handle: usize,
    },
    /// Asks whether a device is still bound to its context.
    Bound {
        /// The device's handle.
        handle: usize,
    },
    /// Maps a buffer.
    Map {
        /// The context.
        context: usize,
        /// The domain.
        domain: usize,
        /// Where.
        iova: u64,
        /// How long.
        pages: usize,
    },
    /// Unmaps exactly one mapping.
    Unmap {
        /// The context.
        context: usize,
        /// The domain.
        domain: usize,
        /// Where.
        iova: u64,
        /// How long.
        pages: usize,
    },
    /// Unmaps everything in a domain.
    UnmapAll {
        /// The context.
        context: usize,
        /// The domain.
        domain: usize,
    },
    /// Puts a device on vfio-pci.
    BindVfio {
        /// The device.
        seat: Seat,
    },
    /// Puts the sibling on its host driver.
    BindHost,
    /// Takes a device from its driver.
    Unbind {
        /// The device.
        seat: Seat,
    },
    /// Closes everything and brings the seats back to where a sequence starts.
    Finish,
}

/// What an outsider sees after an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Whether a group is free: `yes`, `no` or an errno. One group in turn, all at the end.
    pub free: Vec<String>,
    /// Whether VFIO has each seat open: `yes`, `no` or an errno.
    pub in_use: Vec<String>,
    /// The driver of each seat, empty without one; only after what can change drivers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drivers: Vec<String>,
}

/// An operation and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was done.
    pub op: Op,
    /// `ok`, `ok VALUE`, an errno's name, `no slot`, `driver mismatch`, `no answer`.
    pub got: String,
    /// The state afterwards.
    pub after: After,
}

/// A sequence and its answers: one JSON line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Where the sequence came from.
    pub seed: u64,
    /// In order.
    pub entries: Vec<Entry>,
}
