// SPDX-License-Identifier: BSD-2-Clause
//! From a process to what we keep about it, without a lock on the way that matters.
//!
//! Only threads of a process look its entry up, and only its exit or exec event removes it, when
//! its other threads are gone or, for exec, suspended at the boundary to user mode. So an entry that
//! a thread finds under its own process's key cannot go away while that thread is in a system call,
//! and the value may be borrowed that long.
//!
//! Entries are never freed before the map is, only reused. A reader whose chain is changed under it
//! can therefore miss its entry, never find a wrong one; a miss is trusted only if nothing was
//! removed meanwhile, else it is repeated under the lock.
//!
//! # Lock
//! `aio_rs procs`: all changes of chains. Nothing is locked under it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::mtx::Mutex;
use super::proc::{Curthread, Leaving, LiveProc, ProcId};

/// 32 KiB of heads; a machine with more AIO processes has chains.
const BUCKETS: usize = 4096;

struct Entry<T> {
    key: AtomicUsize,
    /// Null: the process belongs to the built-in.
    value: AtomicPtr<T>,
    next: AtomicPtr<Entry<T>>,
}

/// How many entries are allocated at once: a machine with few AIO processes has one chunk.
const CHUNK: usize = 64;

/// Entries, and the chunk allocated before.
struct Chunk<T> {
    before: *mut Chunk<T>,
    entries: Box<[Entry<T>]>,
}

/// What the map's mutex protects, besides the chains.
struct Free<T> {
    /// Entries in no chain.
    head: *mut Entry<T>,
    chunks: *mut Chunk<T>,
}

/// A borrowed count of a value: the map's entry owns it, and stays while its process is in a call.
pub struct Held<'a, T> {
    value: ManuallyDrop<Arc<T>>,
    _entry: PhantomData<&'a T>,
}

impl<T> Deref for Held<'_, T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.value
    }
}

/// What is known about a process.
pub enum Owner<'a, T> {
    /// Nothing: it has not used AIO yet.
    Nobody,
    /// It was left to the built-in.
    Builtin,
    /// It is ours.
    Ours(Held<'a, T>),
}

/// What became of an attempt to decide a process's owner.
pub enum Decided<'a, T> {
    /// This attempt decided.
    Now(Owner<'a, T>),
    /// It had been decided before.
    Before(Owner<'a, T>),
}

/// See the file's text.
pub struct ProcMap<T> {
    buckets: Box<[AtomicPtr<Entry<T>>]>,
    removals: AtomicU64,
    free: Mutex<Free<T>>,
}

// SAFETY: entries are atomics, changed under the lock only; values are shared by Arc.
unsafe impl<T: Send + Sync> Sync for ProcMap<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for ProcMap<T> {}

impl<T> ProcMap<T> {
    /// Makes an empty map. May sleep.
    pub fn new() -> ProcMap<T> {
        ProcMap {
            buckets: (0..BUCKETS).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            removals: AtomicU64::new(0),
            free: Mutex::new(
                c"aio_rs procs",
                Free { head: ptr::null_mut(), chunks: ptr::null_mut() },
            ),
        }
    }

    fn bucket(&self, id: ProcId) -> &AtomicPtr<Entry<T>> {
        // struct proc is about 1.4 KB, so its low bits carry little.
        let mixed = (id.address() as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.buckets[(mixed >> 40) as usize % BUCKETS]
    }

    fn walk(&self, id: ProcId) -> Option<&Entry<T>> {
        let mut at = self.bucket(id).load(Ordering::Acquire);
        // SAFETY: entries live as long as the map.
        while let Some(entry) = unsafe { at.as_ref() } {
            if entry.key.load(Ordering::Acquire) == id.address() {
                return Some(entry);
            }
            at = entry.next.load(Ordering::Acquire);
        }
        None
    }

    fn find(&self, id: ProcId) -> Option<&Entry<T>> {
        let before = self.removals.load(Ordering::SeqCst);
        if let Some(entry) = self.walk(id) {
            return Some(entry);
        }
        if self.removals.load(Ordering::SeqCst) == before {
            return None;
        }
        let _lock = self.free.lock();
        self.walk(id)
    }

    fn owner_of<'a>(entry: Option<&'a Entry<T>>) -> Owner<'a, T> {
        let Some(entry) = entry else { return Owner::Nobody };
        let raw = entry.value.load(Ordering::Acquire);
        if raw.is_null() {
            return Owner::Builtin;
        }
        // SAFETY: what Arc::into_raw gave in decide. The count is the entry's and is not given up
        // here; the entry stays, because its process is in a call, or leaving and the caller is it.
        let value = ManuallyDrop::new(unsafe { Arc::from_raw(raw) });
        Owner::Ours(Held { value, _entry: PhantomData })
    }

    /// Looks the current process up. Context: any.
    pub fn get<'a>(&'a self, td: Curthread<'a>) -> Owner<'a, T> {
        Self::owner_of(self.find(td.proc_id()))
    }

    /// Makes the current process ours, with the value `make` gives, unless its owner is decided.
    /// May sleep.
    pub fn claim<'a>(
        &'a self,
        td: Curthread<'a>,
        make: impl FnOnce(LiveProc) -> Arc<T>,
    ) -> Decided<'a, T> {
        self.decide(td, Some(make(LiveProc::of(td))))
    }

    /// Leaves the current process to the built-in, unless its owner is decided. May sleep.
    pub fn disclaim<'a>(&'a self, td: Curthread<'a>) -> Decided<'a, T> {
        self.decide(td, None)
    }

    fn decide<'a>(&'a self, td: Curthread<'a>, value: Option<Arc<T>>) -> Decided<'a, T> {
        let id = td.proc_id();
        let mut spare: Option<Box<Chunk<T>>> = None;
        let mut free = self.free.lock();
        while free.head.is_null() {
            if let Some(mut chunk) = spare.take() {
                chunk.before = free.chunks;
                for entry in &chunk.entries {
                    entry.next.store(free.head, Ordering::Relaxed);
                    free.head = ptr::from_ref(entry).cast_mut();
                }
                free.chunks = Box::into_raw(chunk);
                break;
            }
            drop(free);
            let entry = || Entry {
                key: AtomicUsize::new(0),
                value: AtomicPtr::new(ptr::null_mut()),
                next: AtomicPtr::new(ptr::null_mut()),
            };
            let entries = (0..CHUNK).map(|_| entry()).collect();
            spare = Some(Box::new(Chunk { before: ptr::null_mut(), entries }));
            free = self.free.lock();
        }
        if let Some(entry) = self.walk(id) {
            drop(free);
            drop((value, spare));
            return Decided::Before(Self::owner_of(Some(entry)));
        }
        let entry = free.head;
        let raw = value.map_or(ptr::null_mut(), |value| Arc::into_raw(value).cast_mut());
        let bucket = self.bucket(id);
        // SAFETY: entries live as long as the map; this one is in no chain, and there is one: the
        // loop above saw to it under this lock.
        let entry = unsafe { &*entry };
        free.head = entry.next.load(Ordering::Relaxed);
        entry.value.store(raw, Ordering::Relaxed);
        entry.next.store(bucket.load(Ordering::Relaxed), Ordering::Release);
        entry.key.store(id.address(), Ordering::Release);
        bucket.store(ptr::from_ref(entry).cast_mut(), Ordering::Release);
        drop(free);
        drop(spare);
        Decided::Now(Self::owner_of(Some(entry)))
    }

    /// Looks a leaving process's value up.
    pub fn leaving(&self, leaving: &Leaving) -> Option<Arc<T>> {
        match Self::owner_of(self.find(leaving.id())) {
            Owner::Ours(value) => Some(Arc::clone(&value)),
            _ => None,
        }
    }

    /// Forgets a process that leaves. `live` is what [`ProcMap::claim`] gave for it, if it is
    /// ours: from here on there may be no such process.
    pub fn remove(&self, leaving: &Leaving, live: Option<LiveProc>) {
        let id = leaving.id();
        if self.find(id).is_none() {
            return;
        }
        let mut free = self.free.lock();
        let mut link = self.bucket(id);
        let entry = loop {
            // SAFETY: entries live as long as the map.
            let Some(entry) = (unsafe { link.load(Ordering::Relaxed).as_ref() }) else {
                return;
            };
            if entry.key.load(Ordering::Relaxed) == id.address() {
                break entry;
            }
            link = &entry.next;
        };
        link.store(entry.next.load(Ordering::Relaxed), Ordering::Release);
        // Before the entry can be seen in another chain, so that a reader led astray repeats.
        self.removals.fetch_add(1, Ordering::SeqCst);
        entry.key.store(0, Ordering::Release);
        let raw = entry.value.swap(ptr::null_mut(), Ordering::Relaxed);
        entry.next.store(free.head, Ordering::Release);
        free.head = ptr::from_ref(entry).cast_mut();
        drop(free);
        if !raw.is_null() {
            assert!(
                live.is_some_and(|live| live.id() == id),
                "a process of ours is forgotten while it may be used"
            );
            // SAFETY: what decide stored; the entry held one count.
            drop(unsafe { Arc::from_raw(raw) });
        }
    }

    /// Calls `visit` with every value there is from before the call to its end, until it returns
    /// false. No lock of ours is held meanwhile. May sleep.
    pub fn all(&self, mut visit: impl FnMut(&Arc<T>) -> bool) {
        let mut values = Vec::new();
        for bucket in &self.buckets {
            // Memory for a chain cannot be had under the lock.
            while !self.collect(bucket, &mut values) {
                let more = values.capacity() * 2 + 4;
                values = Vec::with_capacity(more);
            }
            for value in values.drain(..) {
                if !visit(&value) {
                    return;
                }
            }
        }
    }

    /// Takes a count of every value of a chain; false when there is no room for all.
    fn collect(&self, bucket: &AtomicPtr<Entry<T>>, values: &mut Vec<Arc<T>>) -> bool {
        let lock = self.free.lock();
        let mut at = bucket.load(Ordering::Relaxed);
        let mut fits = true;
        // SAFETY: entries live as long as the map.
        while let Some(entry) = unsafe { at.as_ref() } {
            let raw = entry.value.load(Ordering::Relaxed);
            if !raw.is_null() {
                if values.len() == values.capacity() {
                    fits = false;
                    break;
                }
                // SAFETY: the entry holds a count, and the lock keeps the entry.
                unsafe { Arc::increment_strong_count(raw) };
                // SAFETY: the count just taken.
                values.push(unsafe { Arc::from_raw(raw) });
            }
            at = entry.next.load(Ordering::Relaxed);
        }
        drop(lock);
        if !fits {
            values.clear();
        }
        fits
    }
}

impl<T> Drop for ProcMap<T> {
    fn drop(&mut self) {
        let mut at = self.free.lock().chunks;
        while !at.is_null() {
            // SAFETY: made by Box in decide, and only dropped here.
            let mut chunk = unsafe { Box::from_raw(at) };
            for entry in &mut chunk.entries {
                let raw = *entry.value.get_mut();
                if !raw.is_null() {
                    // SAFETY: what decide stored; nobody looks any more.
                    drop(unsafe { Arc::from_raw(raw) });
                }
            }
            at = chunk.before;
        }
    }
}
