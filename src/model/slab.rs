// SPDX-License-Identifier: BSD-2-Clause
//! A store of equal entries that are named by small numbers, in chunks that never move.
//!
//! It never allocates by itself: whoever may sleep prepares a [`Growth`] first and hands it in
//! under the lock. Entries are reused last in, first out, and are not cleared in between.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Names an entry; meaningful only to the slab that gave it.
pub type Id = u32;

/// No entry.
pub const NONE: Id = Id::MAX;

/// How many entries a chunk has, a power of two: an entry's number is its chunk's index times this,
/// and its place there.
const CHUNK: usize = 16;

/// The chunk of an entry, and its place there.
const fn place(id: Id) -> (usize, usize) {
    (id as usize / CHUNK, id as usize % CHUNK)
}

enum Entry<T> {
    Free(Id),
    Used(T),
}

type Chunk<T> = Box<[Entry<T>; CHUNK]>;

/// See the file's text.
pub struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    free: Id,
    len: usize,
}

/// Memory for a slab that was found too small.
pub struct Growth<T> {
    chunks: Vec<Chunk<T>>,
    spine: Vec<Chunk<T>>,
}

/// What a slab lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    chunks: usize,
    spine: usize,
}

/// A chunk of free entries. Made as a slice, so that it is built in place and never on the stack.
fn empty_chunk<T>() -> Chunk<T> {
    let entries: Box<[Entry<T>]> = (0..CHUNK).map(|_| Entry::Free(NONE)).collect();
    let Ok(chunk) = entries.try_into() else { panic!("a chunk of another length") };
    chunk
}

impl<T> Growth<T> {
    /// Allocates what `lack` asks for. May sleep.
    pub fn new(lack: Lack) -> Growth<T> {
        Growth {
            chunks: (0..lack.chunks).map(|_| empty_chunk()).collect(),
            spine: Vec::with_capacity(lack.spine),
        }
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), free: NONE, len: 0 }
    }
}

impl<T> Slab<T> {
    /// The number of used entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry is used.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether one more entry fits.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.free != NONE
    }

    /// Says what must be grown before `count` more entries fit; `None` when they do.
    pub fn lacks(&self, count: usize) -> Option<Lack> {
        let present = self.chunks.len();
        let wanted = (self.len + count).div_ceil(CHUNK);
        if wanted <= present {
            return None;
        }
        let chunks = wanted - present;
        let spine = if wanted > self.chunks.capacity() { wanted.next_power_of_two() } else { 0 };
        Some(Lack { chunks, spine })
    }

    /// Adds memory. What is left over stays in `growth`, to be dropped where freeing is allowed.
    pub fn grow(&mut self, growth: &mut Growth<T>) {
        if growth.spine.capacity() > self.chunks.capacity() {
            growth.spine.append(&mut self.chunks);
            core::mem::swap(&mut growth.spine, &mut self.chunks);
        }
        while self.chunks.len() < self.chunks.capacity() {
            let Some(mut chunk) = growth.chunks.pop() else { break };
            let base = self.chunks.len() * CHUNK;
            for (offset, entry) in chunk.iter_mut().enumerate().rev() {
                *entry = Entry::Free(self.free);
                self.free = Id::try_from(base + offset).expect("fewer entries than ids");
            }
            self.chunks.push(chunk);
        }
    }

    #[inline]
    fn entry(&self, id: Id) -> Option<&Entry<T>> {
        let (chunk, offset) = place(id);
        Some(&self.chunks.get(chunk)?[offset])
    }

    #[inline]
    fn entry_mut(&mut self, id: Id) -> Option<&mut Entry<T>> {
        let (chunk, offset) = place(id);
        Some(&mut self.chunks.get_mut(chunk)?[offset])
    }

    /// Stores `value`; gives it back when [`Slab::lacks`] says that there is no room.
    pub fn insert(&mut self, value: T) -> Result<Id, T> {
        let id = self.free;
        if id == NONE {
            return Err(value);
        }
        Ok(self.put(value))
    }

    /// Stores `value`, for which [`Slab::lacks`] said that there is room.
    #[inline]
    pub fn put(&mut self, value: T) -> Id {
        let id = self.free;
        let Some(entry) = self.entry_mut(id) else { misused(id, "is put where no room is") };
        let Entry::Free(next) = *entry else { misused(id, "is free and used") };
        // A free entry owns nothing.
        core::mem::forget(core::mem::replace(entry, Entry::Used(value)));
        self.free = next;
        self.len += 1;
        id
    }

    /// Drops an entry, once `take` has got out of it what is wanted: for entries too large to be
    /// moved.
    #[inline]
    pub fn discard<R>(&mut self, id: Id, take: impl FnOnce(&mut T) -> R) -> R {
        let free = self.free;
        let Some(entry) = self.entry_mut(id) else { misused(id, UNUSED) };
        let Entry::Used(value) = entry else { misused(id, UNUSED) };
        let taken = take(value);
        *entry = Entry::Free(free);
        self.free = id;
        self.len -= 1;
        taken
    }

    /// The entry of this number, if one is in use.
    pub fn get(&self, id: Id) -> Option<&T> {
        match self.entry(id) {
            Some(Entry::Used(value)) => Some(value),
            _ => None,
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: Id) -> T {
        let free = self.free;
        let Some(entry) = self.entry_mut(id) else { misused(id, UNUSED) };
        let Entry::Used(value) = core::mem::replace(entry, Entry::Free(free)) else {
            misused(id, UNUSED)
        };
        self.free = id;
        self.len -= 1;
        value
    }
}

const UNUSED: &str = "is not used";

/// Somebody has a number that he has given up, or never had.
// By value and out of line: the number stays in its register where all is well.
#[cold]
#[inline(never)]
fn misused(id: Id, how: &str) -> ! {
    panic!("entry {id} {how}")
}

impl<T> core::ops::Index<Id> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: Id) -> &T {
        match self.entry(id) {
            Some(Entry::Used(value)) => value,
            _ => misused(id, UNUSED),
        }
    }
}

impl<T> core::ops::IndexMut<Id> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, id: Id) -> &mut T {
        match self.entry_mut(id) {
            Some(Entry::Used(value)) => value,
            _ => misused(id, UNUSED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(slab: &mut Slab<u64>, count: usize) {
        while let Some(lack) = slab.lacks(count) {
            slab.grow(&mut Growth::new(lack));
        }
    }

    #[test]
    fn entries_keep_their_values_over_growth_and_reuse() {
        let mut slab = Slab::default();
        assert_eq!(slab.insert(1), Err(1));
        let mut ids = Vec::new();
        for value in 0..1000 {
            grown(&mut slab, 1);
            ids.push(slab.insert(value).unwrap());
        }
        for (value, &id) in ids.iter().enumerate() {
            assert_eq!(slab[id], value as u64);
        }
        for &id in ids.iter().step_by(2) {
            slab.remove(id);
        }
        assert_eq!(slab.len(), 500);
        assert_eq!(slab.lacks(500), None);
        assert!(slab.lacks(1000).is_some());
        grown(&mut slab, 1000);
        assert_eq!(slab[ids[1]], 1);
    }

    #[test]
    #[should_panic(expected = "is not used")]
    fn an_entry_is_removed_once() {
        let mut slab = Slab::default();
        grown(&mut slab, 1);
        let id = slab.insert(7).unwrap();
        slab.remove(id);
        slab.remove(id);
    }
}
