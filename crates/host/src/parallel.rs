//! Going through what a large machine has, on several processors.

use std::{num::NonZero, thread};

/// Below so many items one thread is as fast.
const WORTH_IT: usize = 512;
/// Reading sysfs, most of the work, doesn't get faster with more.
const MOST_THREADS: usize = 4;

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
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|chunk| (chunk, scope.spawn(move || work(chunk))))
            .collect();
        running
            .into_iter()
            // A chunk whose thread failed is done again, here, where its panic is seen.
            .flat_map(|(chunk, thread)| thread.join().unwrap_or_else(|_| work(chunk)))
            .collect()
    })
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
}
