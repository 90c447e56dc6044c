// SPDX-License-Identifier: BSD-2-Clause
//! First-in-first-out lists of slab entries, linked by number.

use super::slab::{Id, NONE, Slab};

/// The place of an entry in the one list it is in.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    next: Id,
    prev: Id,
}

impl Links {
    /// In no list.
    pub const UNLINKED: Links = Links { next: NONE, prev: NONE };
}

/// An entry that can be in a list.
pub trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A list; its entries live in a slab that is passed to every operation.
#[derive(Debug)]
pub struct List {
    head: Id,
    tail: Id,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        List { head: NONE, tail: NONE, len: 0 }
    }
}

impl List {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The oldest entry.
    pub fn first(&self) -> Option<Id> {
        (self.head != NONE).then_some(self.head)
    }

    /// The youngest entry.
    pub fn last(&self) -> Option<Id> {
        (self.tail != NONE).then_some(self.tail)
    }

    /// The entry after `id`, which is in this list.
    pub fn after<T: Linked>(&self, slab: &mut Slab<T>, id: Id) -> Option<Id> {
        let next = slab[id].links().next;
        (next != NONE).then_some(next)
    }

    /// The entry before `id`, which is in this list.
    pub fn before<T: Linked>(&self, slab: &mut Slab<T>, id: Id) -> Option<Id> {
        let prev = slab[id].links().prev;
        (prev != NONE).then_some(prev)
    }

    /// Makes `id`, which is in this list, the youngest.
    pub fn rotate<T: Linked>(&mut self, slab: &mut Slab<T>, id: Id) {
        self.remove(slab, id);
        self.push(slab, id);
    }

    /// Adds `id`, which is in no list, as the youngest.
    #[inline]
    pub fn push<T: Linked>(&mut self, slab: &mut Slab<T>, id: Id) {
        *slab[id].links() = Links { next: NONE, prev: self.tail };
        if self.tail == NONE {
            self.head = id;
        } else {
            slab[self.tail].links().next = id;
        }
        self.tail = id;
        self.len += 1;
    }

    /// Adds `id`, which is in no list, as the oldest.
    pub fn push_front<T: Linked>(&mut self, slab: &mut Slab<T>, id: Id) {
        *slab[id].links() = Links { next: self.head, prev: NONE };
        if self.head == NONE {
            self.tail = id;
        } else {
            slab[self.head].links().prev = id;
        }
        self.head = id;
        self.len += 1;
    }

    /// Takes `id`, which is in this list, out.
    pub fn remove<T: Linked>(&mut self, slab: &mut Slab<T>, id: Id) {
        let Links { next, prev } = core::mem::replace(slab[id].links(), Links::UNLINKED);
        if prev == NONE {
            assert!(self.head == id, "an entry is not in this list");
            self.head = next;
        } else {
            slab[prev].links().next = next;
        }
        if next == NONE {
            assert!(self.tail == id, "an entry is not in this list");
            self.tail = prev;
        } else {
            slab[next].links().prev = prev;
        }
        self.len -= 1;
    }

    /// Takes the oldest entry out.
    #[inline]
    pub fn pop<T: Linked>(&mut self, slab: &mut Slab<T>) -> Option<Id> {
        let id = self.first()?;
        self.head = core::mem::replace(slab[id].links(), Links::UNLINKED).next;
        match self.first() {
            Some(next) => slab[next].links().prev = NONE,
            None => self.tail = NONE,
        }
        self.len -= 1;
        Some(id)
    }
}
