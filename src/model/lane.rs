// SPDX-License-Identifier: BSD-2-Clause
//! The requests that wait for one direction of one socket, oldest first, over all processes.
//!
//! Like a process's table it never sleeps, allocates or frees: every request reserves its place
//! before it is queued and keeps it until it is gone, so that it can be queued again at any time.

use super::list::{Linked, Links, List};
use super::slab::{Growth, Id, Lack, Slab};

/// Names one stay of a value in a lane: taking a value out and queueing it again gives another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    place: Id,
    serial: u32,
}

struct Stay<T> {
    links: Links,
    serial: u32,
    value: T,
}

impl<T> Linked for Stay<T> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// See the file's text.
pub struct Lane<T> {
    stays: Slab<Stay<T>>,
    order: List,
    reserved: usize,
    serial: u32,
    /// A value was taken out by [`Lane::begin_turn`], and its turn has not ended.
    turn: bool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Lane { stays: Slab::default(), order: List::default(), reserved: 0, serial: 0, turn: false }
    }
}

/// Memory for a lane.
pub struct Places<T>(Growth<Stay<T>>);

impl<T> Places<T> {
    /// Allocates what `lack` asks for. May sleep.
    pub fn new(lack: Lack) -> Places<T> {
        Places(Growth::new(lack))
    }
}

impl<T> Lane<T> {
    /// Reserves a place.
    ///
    /// # Errors
    /// What to grow first.
    pub fn reserve(&mut self) -> Result<(), Lack> {
        // Places that are reserved and not taken are free ones.
        let free = self.reserved - self.stays.len();
        match self.stays.lacks(free + 1) {
            Some(lack) => Err(lack),
            None => {
                self.reserved += 1;
                Ok(())
            }
        }
    }

    /// Adds memory. What is left over stays in `places`, to be dropped where freeing is allowed.
    pub fn grow(&mut self, places: &mut Places<T>) {
        self.stays.grow(&mut places.0);
    }

    /// Gives a place up that nothing stays in.
    pub fn release(&mut self) {
        assert!(self.reserved > self.stays.len(), "a place is released while it is used");
        self.reserved -= 1;
    }

    /// Whether there is a place that was not given up.
    pub fn is_reserved(&self) -> bool {
        self.reserved > 0
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether one value is queued.
    pub fn is_single(&self) -> bool {
        self.order.len() == 1
    }

    fn insert(&mut self, value: T) -> Ticket {
        assert!(self.stays.len() < self.reserved, "queued without a place");
        self.serial = self.serial.wrapping_add(1);
        let stay = Stay { links: Links::UNLINKED, serial: self.serial, value };
        let Ok(place) = self.stays.insert(stay) else { panic!("a reserved place is missing") };
        Ticket { place, serial: self.serial }
    }

    /// Queues a value as the youngest.
    pub fn push(&mut self, value: T) -> Ticket {
        let ticket = self.insert(value);
        self.order.push(&mut self.stays, ticket.place);
        ticket
    }

    /// Queues a value as the oldest.
    pub fn push_front(&mut self, value: T) -> Ticket {
        let ticket = self.insert(value);
        self.order.push_front(&mut self.stays, ticket.place);
        ticket
    }

    /// Takes the oldest value out.
    pub fn pop(&mut self) -> Option<T> {
        let place = self.order.pop(&mut self.stays)?;
        Some(self.stays.remove(place).value)
    }

    /// Takes the only value out, before anybody else looks: nothing of the lane is to be begun until
    /// [`Lane::end_turn`]. `None`: it is not the only one, or another has its turn.
    pub fn begin_turn(&mut self) -> Option<T> {
        if self.turn || !self.is_single() {
            return None;
        }
        let value = self.pop();
        self.turn = value.is_some();
        value
    }

    /// Whether nothing is to be begun now.
    pub fn has_turn(&self) -> bool {
        self.turn
    }

    /// Ends the turn. A value that is to go on is queued in front before.
    pub fn end_turn(&mut self) {
        self.turn = false;
    }

    /// Takes one value out, if it is still there; and says whether it was the oldest.
    pub fn take(&mut self, ticket: Ticket) -> Option<(T, bool)> {
        if self.stays.get(ticket.place)?.serial != ticket.serial {
            return None;
        }
        let oldest = self.order.first() == Some(ticket.place);
        self.order.remove(&mut self.stays, ticket.place);
        Some((self.stays.remove(ticket.place).value, oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserve<T>(lane: &mut Lane<T>) {
        while let Err(lack) = lane.reserve() {
            lane.grow(&mut Places::new(lack));
        }
    }

    #[test]
    fn values_leave_in_order_and_one_goes_back_to_the_front() {
        let mut lane = Lane::default();
        for value in 0..100 {
            reserve(&mut lane);
            lane.push(value);
        }
        let first = lane.pop().unwrap();
        lane.push_front(first);
        for value in 0..100 {
            assert_eq!(lane.pop(), Some(value));
            assert!(lane.is_reserved());
            lane.release();
        }
        assert!(lane.is_empty() && !lane.is_reserved());
    }

    #[test]
    fn a_ticket_is_good_for_one_stay() {
        let mut lane = Lane::default();
        reserve(&mut lane);
        reserve(&mut lane);
        let first = lane.push('a');
        let second = lane.push('b');
        assert_eq!(lane.take(second), Some(('b', false)));
        assert_eq!(lane.take(second), None);
        assert_eq!(lane.pop(), Some('a'));
        let again = lane.push_front('a');
        assert_eq!(lane.take(first), None);
        assert_eq!(lane.take(again), Some(('a', true)));
        lane.release();
        lane.release();
    }

    #[test]
    fn a_turn_is_for_the_only_value_and_one_at_a_time() {
        let mut lane = Lane::default();
        for _ in 0..3 {
            reserve(&mut lane);
        }
        assert_eq!(lane.begin_turn(), None);
        lane.push('a');
        assert_eq!(lane.begin_turn(), Some('a'));
        assert!(lane.has_turn() && lane.is_empty());
        lane.push('b');
        assert_eq!(lane.begin_turn(), None);
        lane.push_front('a');
        lane.end_turn();
        assert_eq!(lane.begin_turn(), None);
        assert!(!lane.has_turn());
        assert_eq!(lane.pop(), Some('a'));
        assert_eq!(lane.begin_turn(), Some('b'));
    }

    #[test]
    fn a_place_that_was_reserved_is_there_when_others_have_come_meanwhile() {
        let mut lane = Lane::default();
        reserve(&mut lane);
        lane.push(0);
        let running = lane.pop().unwrap();
        for value in 1..50 {
            reserve(&mut lane);
            lane.push(value);
        }
        lane.push_front(running);
        assert_eq!(lane.pop(), Some(0));
    }

    #[test]
    #[should_panic(expected = "while it is used")]
    fn a_used_place_is_not_released() {
        let mut lane = Lane::default();
        reserve(&mut lane);
        lane.push(1);
        lane.release();
    }
}
