//! Going through what a large machine has, on several processors.

use std::{
    num::NonZero,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Below so many items one thread is as fast.
const WORTH_IT: usize = 512;
/// Reading sysfs, most of the work, doesn't get faster with more.
const MOST_THREADS: usize = 4;
/// Slices that each thread has on average. Other threads take processors away from some of them, so
/// that equal shares would not end at the same time.
const SLICES: usize = 16;

/// Applies `work` to slices of `items`, on several threads where there are many, and joins the
/// results in the items' order.
pub fn in_chunks<T, U>(items: &[T], work: impl Fn(&[T]) -> Vec<U> + Sync) -> Vec<U>
where
    T: Sync,
    U: Send,
{
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(MOST_THREADS);
    if items.len() < WORTH_IT || threads == 1 {
        return work(items);
    }
    let chunks: Vec<&[T]> = items.chunks(items.len().div_ceil(threads * SLICES)).collect();
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(at) else { return done };
            done.push((at, work(chunk)));
        }
    };
    let mut done: Vec<(usize, Vec<U>)> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        let joined =
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|it| resume_unwind(it)));
        joined.flatten().collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_at_every_size() {
        for count in [0, 1, WORTH_IT - 1, WORTH_IT, WORTH_IT + 1, 10 * WORTH_IT + 7] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = in_chunks(&items, |chunk| chunk.iter().map(|item| item * 2).collect());
            assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_in_a_thread_is_its_callers() {
        let items: Vec<usize> = (0..4 * WORTH_IT).collect();
        let fails = || {
            in_chunks(&items, |chunk| {
                assert!(!chunk.contains(&WORTH_IT), "one of them");
                chunk.to_vec()
            })
        };
        assert!(std::panic::catch_unwind(fails).is_err());
    }
}
