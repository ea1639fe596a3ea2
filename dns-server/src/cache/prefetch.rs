//! Prefetching memory, in unsafe code.
//!
//! A read whose result nobody wants does that too, but has to end before what stands behind it in the program can: the processor looks some
//! two queries ahead and then waits for the memory after all. What is only announced it does not wait for.

#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

/// Begins to bring the cache line of `word` near, where the processor has a way to say so.
#[inline(always)]
pub(super) fn prefetch(word: &AtomicU64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads and writes nothing that a program could tell, fails for no address, and is of SSE, which every x86-64 has.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(word.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(word.load(std::sync::atomic::Ordering::Relaxed));
}
