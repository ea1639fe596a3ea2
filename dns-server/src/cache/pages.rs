//! Memory straight from the kernel: reserved as a whole, there from the moment that it is first written to, and in large pages
//! where the kernel has them.
//!
//! Every answer stands somewhere else than the one before. With pages of 4 KiB the processor's table of pages that it knows
//! misses several times for each; with pages of 2 MiB it holds a cache of hundreds of megabytes.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::AtomicU64;

use memmap2::{Advice, MmapMut};

use super::memory::WORD;

/// Words that are zero until they are written.
#[derive(Debug)]
pub(super) struct Pages(MmapMut);

impl Pages {
    /// Room for so many words.
    ///
    /// # Errors
    /// The system does not promise as much memory.
    pub(super) fn reserve(words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(WORD).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapMut::map_anon(bytes)?;
        // A kernel without large pages says so, and nothing is lost but their speed.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(map))
    }

    /// All of them.
    #[inline(always)]
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, is this long, is readable and writable, belongs to nobody else and lives as
        // long as `self`. All of its octets are initialised, by the kernel to zero, and any are an `AtomicU64`. Nothing but
        // what this returns ever refers to them.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / WORD) }
    }
}
