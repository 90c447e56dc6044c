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

/// How many entries each of the first chunks has, and every later one: a slab of few entries is
/// small, and none is grown by much at once.
const CHUNKS: [usize; 3] = [4, 12, 32];

/// The length of the chunk of this index.
const fn chunk_len(chunk: usize) -> usize {
    CHUNKS[if chunk < CHUNKS.len() { chunk } else { CHUNKS.len() - 1 }]
}

/// The number of entries of so many chunks.
const fn entries(chunks: usize) -> usize {
    match chunks {
        0 => 0,
        1 => CHUNKS[0],
        _ => CHUNKS[0] + CHUNKS[1] + (chunks - 2) * CHUNKS[2],
    }
}

/// The chunk of an entry, and its place there.
const fn place(id: Id) -> (usize, usize) {
    let id = id as usize;
    if id < entries(1) {
        (0, id)
    } else if id < entries(2) {
        (1, id - entries(1))
    } else {
        (2 + (id - entries(2)) / CHUNKS[2], (id - entries(2)) % CHUNKS[2])
    }
}

enum Entry<T> {
    Free(Id),
    Used(T),
}

/// As long as [`chunk_len`] says; a slice, so that it is built in place and never on the stack.
type Chunk<T> = Box<[Entry<T>]>;

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
    /// How many chunks there are already.
    present: usize,
    chunks: usize,
    spine: usize,
}

impl<T> Growth<T> {
    /// Allocates what `lack` asks for. May sleep.
    pub fn new(lack: Lack) -> Growth<T> {
        let chunk = |index| (0..chunk_len(index)).map(|_| Entry::Free(NONE)).collect();
        // The last comes first: they are taken from the end.
        Growth {
            chunks: (lack.present..lack.present + lack.chunks).rev().map(chunk).collect(),
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
        let mut wanted = present;
        while entries(wanted) - self.len < count {
            wanted += 1;
        }
        if wanted == present {
            return None;
        }
        let chunks = wanted - present;
        let spine = if wanted > self.chunks.capacity() { wanted.next_power_of_two() } else { 0 };
        Some(Lack { present, chunks, spine })
    }

    /// Adds memory. What is left over stays in `growth`, to be dropped where freeing is allowed.
    pub fn grow(&mut self, growth: &mut Growth<T>) {
        if growth.spine.capacity() > self.chunks.capacity() {
            growth.spine.append(&mut self.chunks);
            core::mem::swap(&mut growth.spine, &mut self.chunks);
        }
        while self.chunks.len() < self.chunks.capacity() {
            let wanted = chunk_len(self.chunks.len());
            // Others may have grown it meanwhile.
            let Some(mut chunk) = growth.chunks.pop_if(|chunk| chunk.len() == wanted) else {
                break;
            };
            let base = entries(self.chunks.len());
            for (offset, entry) in chunk.iter_mut().enumerate().rev() {
                *entry = Entry::Free(self.free);
                self.free = Id::try_from(base + offset).expect("fewer entries than ids");
            }
            self.chunks.push(chunk);
        }
    }

    #[inline]
    fn entry(&self, id: Id) -> &Entry<T> {
        let (chunk, offset) = place(id);
        &self.chunks[chunk][offset]
    }

    #[inline]
    fn entry_mut(&mut self, id: Id) -> &mut Entry<T> {
        let (chunk, offset) = place(id);
        &mut self.chunks[chunk][offset]
    }

    /// Stores `value`; gives it back when [`Slab::lacks`] says that there is no room.
    pub fn insert(&mut self, value: T) -> Result<Id, T> {
        let id = self.free;
        if id == NONE {
            return Err(value);
        }
        let Entry::Free(next) = *self.entry(id) else { panic!("entry {id} is free and used") };
        self.free = next;
        self.len += 1;
        *self.entry_mut(id) = Entry::Used(value);
        Ok(id)
    }

    /// Drops an entry.
    pub fn discard(&mut self, id: Id) {
        let free = self.free;
        let entry = self.entry_mut(id);
        assert!(matches!(entry, Entry::Used(_)), "entry {id} removed twice");
        *entry = Entry::Free(free);
        self.free = id;
        self.len -= 1;
    }

    /// The entry of this number, if one is in use.
    pub fn get(&self, id: Id) -> Option<&T> {
        match self.entry(id) {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: Id) -> T {
        let free = self.free;
        let Entry::Used(value) = core::mem::replace(self.entry_mut(id), Entry::Free(free)) else {
            panic!("entry {id} removed twice")
        };
        self.free = id;
        self.len -= 1;
        value
    }
}

impl<T> core::ops::Index<Id> for Slab<T> {
    type Output = T;

    fn index(&self, id: Id) -> &T {
        match self.entry(id) {
            Entry::Used(value) => value,
            Entry::Free(_) => panic!("entry {id} is not used"),
        }
    }
}

impl<T> core::ops::IndexMut<Id> for Slab<T> {
    fn index_mut(&mut self, id: Id) -> &mut T {
        match self.entry_mut(id) {
            Entry::Used(value) => value,
            Entry::Free(_) => panic!("entry {id} is not used"),
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
    #[should_panic(expected = "removed twice")]
    fn an_entry_is_removed_once() {
        let mut slab = Slab::default();
        grown(&mut slab, 1);
        let id = slab.insert(7).unwrap();
        slab.remove(id);
        slab.remove(id);
    }
}
