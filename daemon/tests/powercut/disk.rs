//! A disk that forgets: what is left of a directory when the power goes.

use std::{collections::BTreeMap, fs, path::Path};

use rand::{Rng as _, rngs::StdRng};

use super::trace::{Event, File, Timed};

/// What a cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Loss {
    /// It was all on the disk, as after a kill.
    Nothing,
    /// None of it was.
    Everything,
    /// Any part was, in sectors of that size: so some came before others that were written earlier.
    Sectors(usize),
    /// All but some whole writes.
    Writes,
}

#[derive(Debug, Clone)]
enum Change {
    Write { ended: usize, offset: usize, data: Vec<u8> },
    Truncate { ended: usize, length: usize },
}

impl Change {
    fn ended(&self) -> usize {
        match self {
            Self::Write { ended, .. } | Self::Truncate { ended, .. } => *ended,
        }
    }
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Entry {
    Create { name: String, file: File },
    Unlink { name: String },
    Rename { from: String, to: String },
}

/// The directory.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<File, Content>,
    names: BTreeMap<String, File>,
    pending: Vec<(usize, Entry)>,
    /// It says that all is on it, and keeps nothing but names.
    lies: bool,
}

/// What is left: files by name.
pub(crate) type Left = BTreeMap<String, Vec<u8>>;

impl Disk {
    /// An empty one.
    pub(crate) fn new(lies: bool) -> Self {
        Self { lies, ..Self::default() }
    }

    /// An event happens.
    pub(crate) fn happens(&mut self, (ended, event): &Timed) {
        let ended = *ended;
        match event {
            Event::Create { name, file } => {
                self.files.entry(*file).or_default();
                self.pending.push((ended, Entry::Create { name: name.clone(), file: *file }));
            }
            Event::Unlink { name } => {
                self.pending.push((ended, Entry::Unlink { name: name.clone() }));
            }
            Event::Rename { from, to } => {
                let entry = Entry::Rename { from: from.clone(), to: to.clone() };
                self.pending.push((ended, entry));
            }
            Event::Write { file, offset, data } => {
                let change = Change::Write { ended, offset: *offset, data: data.clone() };
                self.files.entry(*file).or_default().pending.push(change);
            }
            Event::Truncate { file, length } => {
                let change = Change::Truncate { ended, length: *length };
                self.files.entry(*file).or_default().pending.push(change);
            }
            Event::Sync { file, began } => {
                if self.lies {
                    return;
                }
                let content = self.files.entry(*file).or_default();
                for change in std::mem::take(&mut content.pending) {
                    if change.ended() < *began {
                        apply(&mut content.durable, &change);
                    } else {
                        content.pending.push(change);
                    }
                }
            }
            Event::SyncDirectory { began } => {
                for (ended, entry) in std::mem::take(&mut self.pending) {
                    if ended < *began {
                        enter(&mut self.names, &entry);
                    } else {
                        self.pending.push((ended, entry));
                    }
                }
            }
            Event::Answer { .. } => {}
        }
    }

    /// How many changes a cut now could lose.
    pub(crate) fn unsynced(&self) -> usize {
        self.pending.len() + self.files.values().map(|content| content.pending.len()).sum::<usize>()
    }

    /// The power goes.
    pub(crate) fn cut(&self, loss: Loss, random: &mut StdRng) -> Left {
        let keep = [0.2, 0.5, 0.8, 0.95][random.random_range(0..4)];
        let mut names = self.names.clone();
        for (_, entry) in &self.pending {
            let stays = match loss {
                Loss::Nothing => true,
                Loss::Everything => false,
                Loss::Sectors(_) | Loss::Writes => random.random_bool(0.5),
            };
            if stays {
                enter(&mut names, entry);
            }
        }
        let content = |file: &File| {
            let content = &self.files[file];
            let mut bytes = content.durable.clone();
            for change in &content.pending {
                lose(&mut bytes, change, loss, keep, random);
            }
            bytes
        };
        let mut content = content;
        names.iter().map(|(name, file)| (name.clone(), content(file))).collect()
    }
}

fn lose(bytes: &mut Vec<u8>, change: &Change, loss: Loss, keep: f64, random: &mut StdRng) {
    match (loss, change) {
        (Loss::Nothing, _) => apply(bytes, change),
        (Loss::Everything, _) => {}
        (Loss::Sectors(size), Change::Write { offset, data, .. }) => {
            // Sectors of the file, not of the write.
            let mut at = 0;
            while at < data.len() {
                let end = (at + size - (offset + at) % size).min(data.len());
                if random.random_bool(keep) {
                    put(bytes, offset + at, &data[at..end]);
                }
                at = end;
            }
        }
        (Loss::Sectors(_) | Loss::Writes, _) => {
            if random.random_bool(keep) {
                apply(bytes, change);
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data, .. } => put(bytes, *offset, data),
        Change::Truncate { length, .. } => bytes.resize(*length, 0),
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn enter(names: &mut BTreeMap<String, File>, entry: &Entry) {
    match entry {
        Entry::Create { name, file } => {
            names.insert(name.clone(), *file);
        }
        Entry::Unlink { name } => {
            names.remove(name);
        }
        Entry::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

/// Writes what is left into a directory.
pub(crate) fn write(dir: &Path, left: &Left) {
    for (name, bytes) in left {
        fs::write(dir.join(name), bytes).expect("written");
    }
}
