//! Guests side by side: an emulated one is a single thread, whatever the host has.

use std::{
    fs,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// What a guest takes of the host's memory, with QEMU's own and some for the page cache.
const GUEST_KIB: u64 = 3 << 20;
/// More of them wait for the same disk.
const MOST: usize = 2;

/// Does all of these, in order, a few at a time; answers in the order of the parts.
pub(super) fn each<T: Sync, R: Send>(parts: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    on(at_once(), parts, act)
}

fn on<T: Sync, R: Send>(threads: usize, parts: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(parts.len()));
    thread::scope(|scope| {
        for _ in 0..threads.min(parts.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(part) = parts.get(at) else { return };
                    let answer = act(part);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, answer));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// How many guests the host has processors and memory for; one at least.
fn at_once() -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_kib(&text));
    let room = available.map_or(1, |kib| usize::try_from(kib / GUEST_KIB).unwrap_or(usize::MAX));
    processors.min(room).clamp(1, MOST)
}

fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::{available_kib, each, on};

    #[test]
    fn answers_come_in_order_from_whatever_thread() {
        // None of the first two ends before the other has begun.
        let both = Barrier::new(2);
        let answers = on(2, &[3, 4, 5], |part| {
            if *part < 5 {
                both.wait();
            }
            part * 2
        });
        assert_eq!(answers, [6, 8, 10]);
        assert_eq!(each(&[1, 2], |part| *part), [1, 2]);
        assert!(each(&[] as &[u32], |part| *part).is_empty());
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   23000123 kB\n";
        assert_eq!(available_kib(text), Some(23_000_123));
        assert_eq!(available_kib("MemTotal: 1 kB\n"), None);
    }
}
