//! Memory that is in use no more, and that the allocator still keeps from the system.
//!
//! An agent that starts opens two connections to each other member, one of them for a moment, to fetch entries. What handshakes and
//! that one took lies in pages of its own sizes, which the allocator gives back by and by, and only when it is used.

#![allow(unsafe_code)]

/// Gives whole pages that hold nothing back to the system. Looks at each page of this thread's heap, and takes as long as the kernel
/// needs for those that go.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer, moves nothing that is allocated, and may be called by any thread.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
