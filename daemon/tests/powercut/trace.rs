//! What `berthd` did to its state directory and what it answered, as `strace` saw it: below the
//! program, SQLite and the C library, so nothing that reaches the kernel is missed.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Files that are mapped and made anew after a crash: what is in them is never relied on.
const REBUILT: &str = "-shm";

/// A file of the directory, by the order in which they were made.
pub(crate) type File = usize;

/// What happened, in the order in which it began; syncs stand where they ended.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Create {
        name: String,
        file: File,
    },
    Unlink {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Write {
        file: File,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: File,
        length: usize,
    },
    /// All that had ended when this began is on the disk.
    Sync {
        file: File,
        began: usize,
    },
    SyncDirectory {
        began: usize,
    },
    /// An answer began to leave: for whom, and how many of theirs had left before.
    Answer {
        holder: usize,
        nth: usize,
    },
}

/// An event, and when it had ended, by the lines of the trace.
pub(crate) type Timed = (usize, Event);

/// One system call, whole.
struct Call<'t> {
    name: &'t str,
    args: String,
    /// In which lines.
    begun: usize,
    ended: usize,
}

/// Reads a trace made with `-f -y -xx`.
pub(crate) fn parse(text: &str, dir: &Path, holders: &[String]) -> Vec<Timed> {
    let mut reader = Reader {
        dir: format!("{}/", dir.display()),
        holders,
        files: HashMap::new(),
        made: 0,
        answers: BTreeMap::new(),
        events: Vec::new(),
    };
    let mut calls = calls(text);
    // A write may be on the disk from when it begins, a sync tells only of what had ended.
    calls.sort_by_key(|call| if call.name.ends_with("sync") { call.ended } else { call.begun });
    for call in &calls {
        reader.call(call);
    }
    reader.events
}

fn calls(text: &str) -> Vec<Call<'_>> {
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut open: HashMap<&str, Call<'_>> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(mut call) = open.remove(pid) else { continue };
            call.args.push_str(resumed.split_once("resumed>").map_or("", |(_, rest)| rest));
            call.ended = number;
            calls.push(call);
            continue;
        }
        let Some((name, args)) = rest.split_once('(') else { continue };
        let mut call = Call { name, args: args.to_owned(), begun: number, ended: number };
        match args.strip_suffix(" <unfinished ...>") {
            Some(args) => {
                call.args = args.to_owned();
                open.insert(pid, call);
            }
            None => calls.push(call),
        }
    }
    // What the kill came into may have been done.
    calls.extend(open.into_values().map(|mut call| {
        call.args.push_str(")  = ?");
        call.ended = usize::MAX;
        call
    }));
    calls
}

struct Reader<'t> {
    /// With a slash behind it.
    dir: String,
    holders: &'t [String],
    files: HashMap<String, File>,
    made: usize,
    answers: BTreeMap<usize, usize>,
    events: Vec<Timed>,
}

impl Reader<'_> {
    fn push(&mut self, call: &Call<'_>, event: Event) {
        self.events.push((call.ended, event));
    }

    /// A path's name in the directory.
    fn name(&self, path: &str) -> Option<String> {
        path.strip_prefix(&self.dir).map(str::to_owned)
    }

    /// The file behind the descriptor that is the first argument.
    fn file(&self, call: &Call<'_>) -> Option<File> {
        let path = unhex(call.args.split_once('<')?.1.split_once('>')?.0);
        let name = self.name(&String::from_utf8_lossy(&path))?;
        (!name.ends_with(REBUILT)).then(|| *self.files.get(&name).expect("it was opened"))
    }

    fn call(&mut self, call: &Call<'_>) {
        if result(call).starts_with('-') {
            return;
        }
        match call.name {
            "openat" | "open" | "creat" => self.open(call),
            "unlink" | "unlinkat" => self.unlink(call),
            "rename" | "renameat" | "renameat2" => self.rename(call),
            "pwrite64" | "ftruncate" | "fsync" | "fdatasync" => self.change(call),
            "write" | "writev" | "sendto" | "sendmsg" => self.send(call),
            other => assert!(self.file(call).is_none(), "{other} changes the state: {}", call.args),
        }
    }

    fn open(&mut self, call: &Call<'_>) {
        let Some(path) = strings(&call.args).into_iter().next() else { return };
        let Some(name) = self.name(&String::from_utf8_lossy(&path)) else { return };
        assert!(!call.args.contains("O_TRUNC"), "{name} is truncated by opening it");
        let creates = call.args.contains("O_CREAT");
        if creates && !self.files.contains_key(&name) && !name.ends_with(REBUILT) {
            let file = self.made;
            self.made += 1;
            self.files.insert(name.clone(), file);
            self.push(call, Event::Create { name, file });
        }
    }

    fn unlink(&mut self, call: &Call<'_>) {
        let path = strings(&call.args).into_iter().next().unwrap_or_default();
        let Some(name) = self.name(&String::from_utf8_lossy(&path)) else { return };
        if self.files.remove(&name).is_some() {
            self.push(call, Event::Unlink { name });
        }
    }

    fn rename(&mut self, call: &Call<'_>) {
        let paths = strings(&call.args);
        let names: Vec<String> =
            paths.iter().filter_map(|path| self.name(&String::from_utf8_lossy(path))).collect();
        let [from, to] = <[String; 2]>::try_from(names).expect("both in the directory");
        let file = self.files.remove(&from).expect("it is there");
        self.files.insert(to.clone(), file);
        self.push(call, Event::Rename { from, to });
    }

    fn change(&mut self, call: &Call<'_>) {
        let directory = call.args.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let directory = directory.map(|(path, _)| unhex(path)).unwrap_or_default();
        let whole = [directory.as_slice(), b"/"].concat() == self.dir.as_bytes();
        if whole && result(call) == "0" {
            return self.push(call, Event::SyncDirectory { began: call.begun });
        }
        let Some(file) = self.file(call) else { return };
        let event = match call.name {
            "pwrite64" => {
                let data = strings(&call.args).swap_remove(0);
                let [length, offset] = numbers(call);
                assert_eq!(data.len(), length, "strace cut it short");
                Event::Write { file, offset, data }
            }
            "ftruncate" => {
                let [length] = numbers(call);
                Event::Truncate { file, length }
            }
            // Only one that ended tells anything.
            _ if result(call) == "0" => Event::Sync { file, began: call.begun },
            _ => return,
        };
        self.push(call, event);
    }

    fn send(&mut self, call: &Call<'_>) {
        let fd = call.args.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let fd = unhex(fd.map(|(path, _)| path).unwrap_or_default());
        if !fd.starts_with(b"socket:") && !fd.starts_with(b"UNIX") {
            assert!(self.file(call).is_none(), "a write without an offset: {}", call.args);
            return;
        }
        let data = strings(&call.args).concat();
        for (holder, name) in self.holders.iter().enumerate() {
            if data.windows(name.len()).any(|part| part == name.as_bytes()) {
                let nth = self.answers.entry(holder).or_default();
                let event = Event::Answer { holder, nth: *nth };
                *nth += 1;
                self.push(call, event);
            }
        }
    }
}

fn result<'c>(call: &'c Call<'_>) -> &'c str {
    call.args.rsplit_once(") ").map_or("?", |(_, result)| result.trim_start_matches([' ', '=']))
}

/// The numbers behind the last string or descriptor.
fn numbers<const COUNT: usize>(call: &Call<'_>) -> [usize; COUNT] {
    let (args, _) = call.args.rsplit_once(") ").expect("an end");
    let behind = args.rsplit(['"', '>']).next().unwrap_or_default();
    let numbers: Vec<usize> =
        behind.split(", ").filter_map(|number| number.trim().parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("it can't be read: {}", call.args))
}

/// The quoted strings among arguments.
fn strings(args: &str) -> Vec<Vec<u8>> {
    args.split('"').skip(1).step_by(2).map(unhex).collect()
}

/// The bytes of `\x01\x02`.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: &str| u8::from_str_radix(byte, 16).expect("two digits");
    text.split("\\x").filter(|byte| !byte.is_empty()).map(|byte| digit(&byte[..2])).collect()
}
