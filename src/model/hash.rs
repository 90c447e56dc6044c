// SPDX-License-Identifier: BSD-2-Clause
//! Chains by hash value, in a bucket table that doubles step by step.
//!
//! The table never allocates by itself and never moves more than [`STEP`] old buckets in one call,
//! so its owner's lock is held for a bounded time however many entries there are. Entries of one
//! key keep the order in which they were added.

use alloc::vec::Vec;

use super::slab::{Id, NONE, Slab};

/// An entry that can be in a chain.
pub trait Hashed {
    /// What the entry is found by.
    fn key(&self) -> u64;
    /// The next entry of its chain.
    fn chain(&mut self) -> &mut Id;
}

/// How many buckets one insertion moves while the table doubles.
const STEP: usize = 2;

/// The table; entries live in a slab that is passed to every operation.
#[derive(Default)]
pub struct Hash {
    /// The table before the last doubling, whose buckets below `moved` are empty. Kept until the
    /// next one, as nothing may be freed under the owner's lock.
    old: Vec<Id>,
    moved: usize,
    /// A power of two of buckets, or none before the first growth.
    buckets: Vec<Id>,
    len: usize,
}

/// Spreads a user address, whose low bits are mostly equal, over `buckets` (a power of two).
fn bucket_of(key: u64, buckets: usize) -> usize {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize & (buckets - 1)
}

impl Hash {
    /// The number of buckets that should be installed before one more insertion, if any.
    pub fn lacks(&self) -> Option<usize> {
        if self.buckets.is_empty() {
            Some(32)
        } else if self.moved == self.old.len() && self.len >= self.buckets.len() {
            Some(self.buckets.len() * 2)
        } else {
            None
        }
    }

    /// Allocates buckets for [`Hash::grow`]. May sleep.
    pub fn allocate(buckets: usize) -> Vec<Id> {
        let mut table = Vec::with_capacity(buckets);
        table.resize(buckets, NONE);
        table
    }

    /// Installs a table of the size [`Hash::lacks`] asked for. Returns memory to be dropped where
    /// freeing is allowed.
    pub fn grow(&mut self, buckets: Vec<Id>) -> Vec<Id> {
        if self.lacks() != Some(buckets.len()) {
            return buckets;
        }
        self.moved = 0;
        let old = core::mem::replace(&mut self.buckets, buckets);
        core::mem::replace(&mut self.old, old)
    }

    fn head(&mut self, key: u64) -> &mut Id {
        if self.moved < self.old.len() {
            let index = bucket_of(key, self.old.len());
            if index >= self.moved {
                return &mut self.old[index];
            }
        }
        let index = bucket_of(key, self.buckets.len());
        &mut self.buckets[index]
    }

    fn append<T: Hashed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let entry = &mut slab[id];
        *entry.chain() = NONE;
        let head = self.head(entry.key());
        if *head == NONE {
            *head = id;
            return;
        }
        let mut last = *head;
        loop {
            let chain = slab[last].chain();
            if *chain == NONE {
                *chain = id;
                break;
            }
            last = *chain;
        }
    }

    /// Moves a few buckets of a table that is doubling.
    fn advance<T: Hashed>(&mut self, slab: &mut Slab<T>) {
        for _ in 0..STEP {
            if self.moved == self.old.len() {
                return;
            }
            let mut id = core::mem::replace(&mut self.old[self.moved], NONE);
            self.moved += 1;
            while id != NONE {
                let next = *slab[id].chain();
                self.append(slab, id);
                id = next;
            }
        }
    }

    /// Adds `id`; [`Hash::lacks`] must have been satisfied once before the first call.
    pub fn insert<T: Hashed>(&mut self, slab: &mut Slab<T>, id: Id) {
        self.append(slab, id);
        self.len += 1;
        self.advance(slab);
    }

    /// Takes `id` out.
    pub fn remove<T: Hashed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let entry = &mut slab[id];
        let (key, after) = (entry.key(), *entry.chain());
        let head = self.head(key);
        if *head == id {
            *head = after;
        } else {
            let mut at = *head;
            loop {
                assert!(at != NONE, "an entry is not in its chain");
                let chain = slab[at].chain();
                if *chain == id {
                    *chain = after;
                    break;
                }
                at = *chain;
            }
        }
        self.len -= 1;
    }

    /// Returns the oldest entry of `key` that `wanted` accepts.
    pub fn find<T: Hashed>(
        &mut self,
        slab: &mut Slab<T>,
        key: u64,
        mut wanted: impl FnMut(&T) -> bool,
    ) -> Option<Id> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut id = *self.head(key);
        while id != NONE {
            let entry = &mut slab[id];
            if entry.key() == key && wanted(entry) {
                return Some(id);
            }
            id = *entry.chain();
        }
        None
    }
}

impl Hash {
    /// Returns the next younger entry of the same key.
    pub fn find_after<T: Hashed>(&self, slab: &mut Slab<T>, id: Id) -> Option<Id> {
        let entry = &mut slab[id];
        let (key, mut next) = (entry.key(), *entry.chain());
        while next != NONE && slab[next].key() != key {
            next = *slab[next].chain();
        }
        (next != NONE).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Growth;
    use super::*;

    struct Item(u64, u64, Id);

    impl Hashed for Item {
        fn key(&self) -> u64 {
            self.0
        }
        fn chain(&mut self) -> &mut Id {
            &mut self.2
        }
    }

    #[test]
    fn every_entry_is_found_at_every_size_and_equal_keys_keep_their_order() {
        let mut slab = Slab::default();
        let mut hash = Hash::default();
        let mut ids = Vec::new();
        for serial in 0..5000u64 {
            let key = 0x2000_0000 + (serial / 2) * 160;
            if let Some(lack) = slab.lacks(1) {
                slab.grow(&mut Growth::new(lack));
            }
            if let Some(buckets) = hash.lacks() {
                drop(hash.grow(Hash::allocate(buckets)));
            }
            let id = slab.insert(Item(key, serial, NONE)).ok().unwrap();
            hash.insert(&mut slab, id);
            ids.push((key, serial, id));
            if serial % 97 == 0 {
                for &(key, serial, id) in &ids {
                    assert_eq!(hash.find(&mut slab, key, |item| item.1 == serial), Some(id));
                    let oldest = hash.find(&mut slab, key, |_| true).unwrap();
                    assert_eq!(slab[oldest].1, serial & !1);
                }
            }
        }
        assert!(hash.buckets.len() >= 2500);
        for &(key, serial, id) in &ids {
            hash.remove(&mut slab, id);
            assert_eq!(hash.find(&mut slab, key, |item| item.1 == serial), None);
            slab.remove(id);
        }
        assert_eq!(hash.len, 0);
    }
}
