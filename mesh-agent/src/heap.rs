//! Memory that is in use no more, and that the allocator still keeps from the system.
//!
//! An agent that starts opens two connections to each other member, one of them for a moment, to fetch entries. What that one took
//! lies between what the other one keeps. glibc gives back only what is at the end of its heap, unless it is told to.

#![allow(unsafe_code)]

/// Gives whole pages that hold nothing back to the system, where the allocator can. Takes some 0.1 ms for a heap of a million
/// entries with gaps of their size, and as long as the kernel needs for the pages that go.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc documents the call as safe for threads. It takes no pointer, and moves nothing that is allocated.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
