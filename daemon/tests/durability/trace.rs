//! What `strace -f -ttt -T -y` wrote, and the batches that it shows.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

/// A system call, from its entry to its exit.
///
/// # Units
/// Microseconds since the epoch.
#[derive(Debug, Clone)]
struct Call {
    name: String,
    args: String,
    start_us: u64,
    end_us: u64,
}

/// All calls, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    calls: Vec<Call>,
}

/// Requests whose records became durable by the same `fdatasync` of the write-ahead log.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) names: Vec<String>,
    /// When each request was read, and when its answer began to leave.
    times_us: Vec<(u64, u64)>,
    /// When that `fdatasync` ended; without one this is `None`.
    durable_us: Option<u64>,
    /// How many syncs, of any file, lie whole between the last request and the first answer.
    pub(crate) syncs_between: usize,
}

impl Trace {
    pub(crate) fn parse(text: &str) -> Self {
        let mut calls = Vec::new();
        let mut begun: HashMap<&str, Call> = HashMap::new();
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else { continue };
            let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
            let Some(now) = micros(time) else { continue };
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let Some(mut call) = begun.remove(pid) else { continue };
                call.args.push_str(resumed.split_once("resumed>").map_or("", |(_, args)| args));
                call.end_us = now;
                calls.push(call);
                continue;
            }
            let Some((name, args)) = rest.split_once('(') else { continue };
            let mut call =
                Call { name: name.to_owned(), args: args.to_owned(), start_us: now, end_us: now };
            if rest.ends_with("<unfinished ...>") {
                begun.insert(pid, call);
            } else {
                call.end_us += took_us(args);
                calls.push(call);
            }
        }
        calls.sort_by_key(|call| call.start_us);
        Self { calls }
    }

    fn first(&self, name: &str, kind: impl Fn(&Call) -> bool) -> Option<&Call> {
        self.calls.iter().find(|call| kind(call) && call.args.contains(name))
    }

    /// The batches in which these requests were made durable.
    pub(crate) fn batches(&self, names: &[&str]) -> Vec<Batch> {
        let mut by_sync: BTreeMap<Option<u64>, Batch> = BTreeMap::new();
        for name in names {
            let read = self.first(name, Call::reads).map(|call| call.end_us);
            let frame = self.first(name, Call::writes_log).map(|call| call.end_us);
            let answer = self.first(name, Call::sends).map(|call| call.start_us);
            let read = read.unwrap_or_else(|| panic!("{name} was not read"));
            let answer = answer.unwrap_or_else(|| panic!("{name} was not answered"));
            let frame = frame.unwrap_or_else(|| panic!("{name} is not in the log"));
            let sync = self
                .calls
                .iter()
                .find(|call| call.syncs() && call.is_of_log() && call.start_us >= frame);
            let batch = by_sync.entry(sync.map(|call| call.start_us)).or_insert_with(|| Batch {
                names: Vec::new(),
                times_us: Vec::new(),
                durable_us: sync.map(|call| call.end_us),
                syncs_between: 0,
            });
            batch.names.push((*name).to_owned());
            batch.times_us.push((read, answer));
        }
        let mut batches: Vec<Batch> = by_sync.into_values().collect();
        for batch in &mut batches {
            let (last, first) = (batch.last_request_us(), batch.first_answer_us());
            let between =
                |call: &&Call| call.syncs() && call.start_us >= last && call.end_us <= first;
            batch.syncs_between = self.calls.iter().filter(between).count();
        }
        batches
    }
}

impl Call {
    fn is_on_socket(&self) -> bool {
        let fd = self.args.split('>').next().unwrap_or_default();
        fd.contains("socket:[") || fd.contains("UNIX")
    }

    fn is_of_log(&self) -> bool {
        self.args.split('>').next().is_some_and(|fd| fd.ends_with("berth.db-wal"))
    }

    fn reads(&self) -> bool {
        self.is_on_socket()
            && ["read", "readv", "recvfrom", "recvmsg"].contains(&self.name.as_str())
    }

    fn sends(&self) -> bool {
        self.is_on_socket()
            && ["write", "writev", "sendto", "sendmsg"].contains(&self.name.as_str())
    }

    fn writes_log(&self) -> bool {
        self.is_of_log() && ["pwrite64", "pwritev", "pwritev2"].contains(&self.name.as_str())
    }

    fn syncs(&self) -> bool {
        let known = ["fdatasync", "fsync", "sync_file_range", "msync"];
        known.contains(&self.name.as_str()) && self.args.contains(") = 0")
    }
}

impl Batch {
    fn last_request_us(&self) -> u64 {
        self.times_us.iter().map(|(read, _)| *read).max().unwrap_or(0)
    }

    fn first_answer_us(&self) -> u64 {
        self.times_us.iter().map(|(_, answer)| *answer).min().unwrap_or(0)
    }

    /// What is wrong with it: an answer that left before its own record was durable.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(durable) = self.durable_us else {
            return Err("its records were never synced".to_owned());
        };
        if self.first_answer_us() < durable {
            let early = durable - self.first_answer_us();
            return Err(format!("an answer left {early} µs before its record was durable"));
        }
        if self.last_request_us() > durable {
            return Err("its records were synced before its last request was read".to_owned());
        }
        if self.syncs_between == 0 {
            return Err("no sync lies between its last request and its first answer".to_owned());
        }
        Ok(())
    }

    /// The shortest time from a request to its answer.
    pub(crate) fn fastest_answer(&self) -> Duration {
        let waited = self.times_us.iter().map(|(read, answer)| answer.saturating_sub(*read));
        Duration::from_micros(waited.min().unwrap_or(0))
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.names.first().map_or("nobody", String::as_str);
        let between = self.first_answer_us().saturating_sub(self.last_request_us());
        write!(
            f,
            "batch of {} ({first} ...): {} sync(s) and {between} µs between last request and first \
             answer",
            self.names.len(),
            self.syncs_between
        )
    }
}

fn micros(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    let fraction: u64 = (fraction.len() == 6).then(|| fraction.parse().ok())??;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction)
}

/// How long a call took that stands on one line: its `<0.000123>`.
fn took_us(args: &str) -> u64 {
    let last = args.rsplit_once('<').map_or("", |(_, last)| last);
    last.strip_suffix('>').and_then(micros).unwrap_or(0)
}

mod tests {
    use super::Trace;

    const READ: &str =
        r#"7 10.000100 recvfrom(9<socket:[5]>, "\0\nname-a", 99, 0, NULL) = 9 <0.000010>"#;
    const SECOND: &str =
        r#"6 10.000200 recvfrom(8<socket:[4]>, "\0\nname-b", 99, 0, NULL) = 9 <0.000010>"#;
    const FRAME: &str =
        r#"5 10.000300 pwrite64(4</s/berth.db-wal>, "name-a name-b", 13, 24) = 13 <0.000010>"#;
    const SYNC: &str = "5 10.000400 fdatasync(4</s/berth.db-wal> <unfinished ...>";
    const SYNCED: &str = "5 10.000900 <... fdatasync resumed>) = 0 (DELAYED) <0.000500>";
    const FAILED: &str = "5 10.000900 <... fdatasync resumed>) = -1 EIO (Input) <0.000500>";
    const ANSWER: &str = r#"6 10.001000 writev(8<socket:[4]>, [{"name-b", 6}], 1) = 6 <0.000010>"#;
    const EARLY: &str = r#"6 10.000500 writev(8<socket:[4]>, [{"name-b", 6}], 1) = 6 <0.000010>"#;
    const OTHER: &str = r#"7 10.001100 sendto(9<socket:[5]>, "name-a", 6, 0) = 6 <0.000010>"#;

    fn judge(lines: &[&str]) -> Result<usize, String> {
        let batches = Trace::parse(&lines.join("\n")).batches(&["name-a", "name-b"]);
        for batch in &batches {
            batch.check()?;
        }
        assert_eq!((batches.len(), batches[0].names.len()), (1, 2));
        Ok(batches[0].syncs_between)
    }

    #[test]
    fn planted_traces_are_told_apart() {
        assert_eq!(judge(&[READ, SECOND, FRAME, SYNC, SYNCED, ANSWER, OTHER]), Ok(1));
        let again = "5 10.000950 fsync(3</s/berth.db>) = 0 <0.000010>";
        assert_eq!(judge(&[READ, SECOND, FRAME, SYNC, SYNCED, again, ANSWER, OTHER]), Ok(2));
        let early = judge(&[READ, SECOND, FRAME, SYNC, EARLY, SYNCED, OTHER]);
        assert!(early.is_err_and(|wrong| wrong.contains("400 µs before")), "an early answer");
        let never = judge(&[READ, SECOND, FRAME, ANSWER, OTHER]);
        assert!(never.is_err_and(|wrong| wrong.contains("never synced")), "no sync");
        let failed = judge(&[READ, SECOND, FRAME, SYNC, FAILED, ANSWER, OTHER]);
        assert!(failed.is_err_and(|wrong| wrong.contains("never synced")), "a failed sync");
    }
}
