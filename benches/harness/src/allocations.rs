//! Counting allocations, of all threads, for as long as it is switched on.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// The system's allocator. While nobody counts it costs one load and a branch.
pub(crate) struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// How many allocations something makes, and of how many bytes. Growing in place counts as one.
pub(crate) fn during(run: impl FnOnce()) -> (u64, u64) {
    let before = (COUNT.load(Relaxed), BYTES.load(Relaxed));
    ON.store(true, Relaxed);
    run();
    ON.store(false, Relaxed);
    (COUNT.load(Relaxed) - before.0, BYTES.load(Relaxed) - before.1)
}

fn count(bytes: usize) {
    if ON.load(Relaxed) {
        COUNT.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator cannot be counted without being one")]
// SAFETY: each call goes to the system's allocator with the caller's own arguments; counting touches atomics only and
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promises, and the block is the system's, as all are.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises, and the block is the system's, as all are.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_only_while_somebody_counts() {
        let (count, bytes) = during(|| drop(std::hint::black_box(Box::new([0_u8; 1_000]))));
        assert!(count >= 1 && bytes >= 1_000, "{count} of {bytes} bytes");
        let before = COUNT.load(Relaxed);
        drop(std::hint::black_box(Box::new([0_u8; 1_000])));
        assert_eq!(COUNT.load(Relaxed), before);
    }
}
