//! Going through what a large machine has, on several processors.

use std::{
    num::NonZero,
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
        running.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    });
    // What a thread that failed had taken is done again, here, where its panic is seen.
    let mut missing = vec![true; chunks.len()];
    done.iter().for_each(|(at, _)| missing[*at] = false);
    let again = chunks.iter().enumerate().filter(|(at, _)| missing[*at]);
    done.extend(again.map(|(at, chunk)| (at, work(chunk))));
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
    fn what_a_thread_that_failed_had_done_is_done_again() {
        let items: Vec<usize> = (0..4 * WORTH_IT).collect();
        let failed = std::sync::atomic::AtomicBool::new(false);
        let same = in_chunks(&items, |chunk| {
            let fails = chunk.contains(&WORTH_IT) && !failed.swap(true, Ordering::AcqRel);
            assert!(!fails, "once");
            chunk.to_vec()
        });
        assert_eq!(same, items);
    }
}
