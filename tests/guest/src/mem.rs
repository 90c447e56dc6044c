// SPDX-License-Identifier: BSD-2-Clause
//! Memory from mmap(2) that the kernel may write at any time: read and written through volatile
//! accessors, one word or one run of bytes at a time, never by reference.

use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::Result;
use crate::sys;

/// The page size.
pub const PAGE: usize = 4096;

/// An address where nothing is ever mapped: below every program, and mmap(2) chooses higher ones.
pub const HOLE: usize = 0x1_0000;

/// An address where the kernel is, or that is at least above all programs.
pub const KERNEL: usize =
    if cfg!(target_pointer_width = "64") { usize::MAX << 31 } else { usize::MAX - (PAGE - 1) };

/// A mapping. It stays until [`Region::unmap`] or the end of the process; after that its
/// accessors fault, as a bad address would.
#[derive(Clone, Copy)]
pub struct Region {
    base: usize,
    len: usize,
}

impl Region {
    /// Maps private memory.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(len: usize) -> Result<Self> {
        let base =
            sys::mmap(len, sys::PROT_READ | sys::PROT_WRITE, sys::MAP_ANON | sys::MAP_PRIVATE, -1)?;
        Ok(Self { base, len })
    }

    /// Maps memory that children share.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map_shared(len: usize) -> Result<Self> {
        let base =
            sys::mmap(len, sys::PROT_READ | sys::PROT_WRITE, sys::MAP_ANON | sys::MAP_SHARED, -1)?;
        Ok(Self { base, len })
    }

    /// A part of a mapping that is known by its address only, such as one that a parent made with
    /// [`Region::map_shared`] before it forked.
    ///
    /// # Panics
    /// When the address is not aligned to a word.
    pub fn shared_at(base: usize, len: usize) -> Self {
        assert!(base.is_multiple_of(8));
        Self { base, len }
    }

    /// The address of the first byte.
    pub fn addr(&self) -> usize {
        self.base
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of a byte.
    ///
    /// # Panics
    /// When it is outside.
    pub fn at(&self, offset: usize) -> usize {
        assert!(offset <= self.len, "offset {offset} in a region of {}", self.len);
        self.base + offset
    }

    /// A part of it.
    ///
    /// # Panics
    /// When it is not all inside.
    pub fn part(&self, offset: usize, len: usize) -> Region {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "part {offset}+{len} of {}",
            self.len
        );
        Region { base: self.base + offset, len }
    }

    /// Takes it away.
    ///
    /// # Errors
    /// Those of munmap(2).
    pub fn unmap(self) -> Result<()> {
        sys::munmap(self.base, self.len)
    }

    /// Makes it readable, writable or neither.
    ///
    /// # Errors
    /// Those of mprotect(2).
    pub fn protect(&self, prot: i32) -> Result<()> {
        sys::mprotect(self.base, self.len, prot)
    }

    /// Reads a word.
    ///
    /// # Panics
    /// When it is outside or not aligned.
    pub fn word(&self, offset: usize) -> u64 {
        let part = self.part(offset, 8);
        assert!(part.base.is_multiple_of(8));
        // SAFETY: inside a mapping of ours, aligned; nothing in Rust refers to it.
        unsafe { core::ptr::read_volatile(part.base as *const u64) }
    }

    /// Writes a word.
    ///
    /// # Panics
    /// When it is outside or not aligned.
    pub fn set_word(&self, offset: usize, value: u64) {
        let part = self.part(offset, 8);
        assert!(part.base.is_multiple_of(8));
        // SAFETY: inside a mapping of ours, aligned; nothing in Rust refers to it.
        unsafe { core::ptr::write_volatile(part.base as *mut u64, value) }
    }

    /// An atomic word, for counting between processes and threads.
    ///
    /// # Panics
    /// When it is outside or not aligned.
    pub fn atomic(&self, offset: usize) -> &core::sync::atomic::AtomicU64 {
        let part = self.part(offset, 8);
        assert!(part.base.is_multiple_of(8));
        // SAFETY: inside a mapping of ours, aligned, zeroed by the kernel at first.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(part.base as *mut u64) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let part = self.part(offset, to.len());
        // SAFETY: inside a mapping of ours, which no Rust object overlaps. A request that still
        // writes there gives us old or new bytes, as it would any program.
        unsafe { core::ptr::copy_nonoverlapping(part.base as *const u8, to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let part = self.part(offset, from.len());
        // SAFETY: inside a mapping of ours, which no Rust object overlaps.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), part.base as *mut u8, from.len()) }
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole mapping, which no Rust object overlaps.
        unsafe { core::ptr::write_bytes(self.base as *mut u8, byte, self.len) }
    }

    /// Whether two regions hold the same bytes over the length of the shorter.
    pub fn first_difference(&self, other: &Region) -> Option<usize> {
        let len = self.len.min(other.len);
        let (mut one, mut two) = ([0; 512], [0; 512]);
        let mut offset = 0;
        while offset < len {
            let count = (len - offset).min(512);
            self.read(offset, &mut one[..count]);
            other.read(offset, &mut two[..count]);
            if one[..count] != two[..count] {
                let within = (0..count).find(|&i| one[i] != two[i]).unwrap_or(0);
                return Some(offset + within);
            }
            offset += count;
        }
        None
    }

    /// Writes a value of plain words.
    ///
    /// # Panics
    /// When it is outside or not aligned.
    pub fn put<T: Plain>(&self, offset: usize, value: T) {
        let part = self.part(offset, size_of::<T>());
        assert!(part.base.is_multiple_of(align_of::<T>()));
        // SAFETY: inside a mapping of ours, aligned; nothing in Rust refers to it.
        unsafe { core::ptr::write_volatile(part.base as *mut T, value) }
    }

    /// Reads a value of plain words.
    ///
    /// # Panics
    /// When it is outside or not aligned.
    pub fn get<T: Plain>(&self, offset: usize) -> T {
        let part = self.part(offset, size_of::<T>());
        assert!(part.base.is_multiple_of(align_of::<T>()));
        // SAFETY: inside a mapping of ours, aligned, and any bytes make a Plain value.
        unsafe { core::ptr::read_volatile(part.base as *const T) }
    }
}

/// Words that a program and its children count with, in a page that they share.
pub struct Counters {
    page: AtomicUsize,
}

impl Counters {
    /// None yet: [`Counters::map`] or [`Counters::map_file`] comes first.
    #[expect(clippy::new_without_default, reason = "made in statics")]
    pub const fn new() -> Self {
        Self { page: AtomicUsize::new(0) }
    }

    /// Makes the page, for this process and those it forks.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(&self) -> Result<()> {
        self.page.store(Region::map_shared(PAGE)?.addr(), SeqCst);
        Ok(())
    }

    /// Maps the page from a file, so that it outlives an exec; `flags` are of open(2), besides O_RDWR.
    ///
    /// # Errors
    /// Those of open(2), ftruncate(2) and mmap(2).
    pub fn map_file(&self, path: &CStr, flags: i32) -> Result<()> {
        let fd = sys::open(path, sys::O_RDWR | flags, 0o600)?;
        sys::ftruncate(fd, PAGE as i64)?;
        let at = sys::mmap(PAGE, sys::PROT_READ | sys::PROT_WRITE, sys::MAP_SHARED, fd)?;
        self.page.store(at, SeqCst);
        sys::close(fd)
    }

    fn page(&self) -> Region {
        Region::shared_at(self.page.load(SeqCst), PAGE)
    }

    /// Adds to a word.
    pub fn add(&self, index: usize, count: u64) {
        self.page().atomic(index * 8).fetch_add(count, SeqCst);
    }

    /// Reads a word.
    pub fn get(&self, index: usize) -> u64 {
        self.page().atomic(index * 8).load(SeqCst)
    }

    /// Sets a word.
    pub fn put(&self, index: usize, value: u64) {
        self.page().atomic(index * 8).store(value, SeqCst);
    }
}

/// Names a program's [`Counters`]: an enum `Counter` whose values know `add`, `get` and `put`, and the
/// words themselves as `COUNTERS`.
#[macro_export]
macro_rules! counters {
    ($($(#[$about:meta])* $name:ident),* $(,)?) => {
        #[derive(Clone, Copy)]
        enum Counter {
            $($(#[$about])* $name),*
        }

        static COUNTERS: $crate::mem::Counters = $crate::mem::Counters::new();

        #[allow(dead_code)]
        impl Counter {
            fn add(self, count: u64) {
                COUNTERS.add(self as usize, count);
            }

            fn get(self) -> u64 {
                COUNTERS.get(self as usize)
            }

            fn put(self, value: u64) {
                COUNTERS.put(self as usize, value);
            }
        }
    };
}

/// Types of plain numbers, for which every bit pattern is a value.
///
/// # Safety
/// The type must hold no reference, no bool, no enum, and no padding that matters.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for usize {}
// SAFETY: numbers.
unsafe impl Plain for isize {}
// SAFETY: numbers.
unsafe impl Plain for i32 {}
// SAFETY: numbers.
unsafe impl Plain for [u64; 2] {}
