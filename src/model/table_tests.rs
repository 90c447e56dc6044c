// SPDX-License-Identifier: BSD-2-Clause
//! The table beside a naive model, over long seeded sequences of every operation, and the small
//! cases that have names.

use super::*;

type Numbers = Table<u64, u32>;

/// No request of these tests waits for a socket.
fn nowhere(_ticket: &()) -> Option<(u64, Outcome)> {
    None
}

fn room(table: &mut Numbers, room: Room) {
    while let Some(need) = table.lacks(room) {
        table.grow(&mut Memory::new(need));
    }
}

/// Submits an ordinary request of the file that belongs to `fd`.
fn submit(table: &mut Numbers, address: u64, fd: i32, payload: u64) {
    room(table, Room::Request);
    let file = fd as u64;
    let submission = Submission { address, fd, file, syncs: false, awaited: true, changes: 0 };
    table.submit(&submission, payload, None, None);
}

fn submit_sync(table: &mut Numbers, address: u64, fd: i32, payload: u64) {
    let file = fd as u64;
    room(table, Room::Request);
    let submission = Submission { address, fd, file, syncs: true, awaited: true, changes: 0 };
    table.submit(&submission, payload, None, None);
}

fn ok(status: i64) -> Outcome {
    Outcome { status, error: None, usage: Usage::default() }
}

/// Tells nobody.
fn silence(_: &mut u32, _: News) {}

/// xorshift64*; any generator will do.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Naive {
    Pending,
    Active,
    Done(i64),
}

/// A request as the naive model has it: a vector in submission order.
#[derive(Clone, Debug)]
struct Entry {
    address: u64,
    fd: i32,
    payload: u64,
    state: Naive,
    finished: u64,
    /// A sync, and the payloads of the requests it waits for.
    behind: Option<Vec<u64>>,
}

#[test]
fn agrees_with_a_naive_model_over_random_histories() {
    for seed in 1..=40u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9));
        let mut table = Numbers::default();
        let mut naive: Vec<Entry> = Vec::new();
        let mut running: Vec<(Id, u64)> = Vec::new();
        let (mut serial, mut clock) = (0u64, 0u64);
        for _ in 0..3000 {
            let address = 0x1000 * (1 + random.below(24) as u64);
            let fd = random.below(3) as i32;
            match random.below(9) {
                8 => {
                    serial += 1;
                    submit_sync(&mut table, address, fd, serial);
                    let waits_for = |e: &&Entry| {
                        e.fd == fd && e.behind.is_none() && !matches!(e.state, Naive::Done(_))
                    };
                    let behind = naive.iter().filter(waits_for).map(|e| e.payload).collect();
                    let (state, behind) = (Naive::Pending, Some(behind));
                    let payload = serial;
                    naive.push(Entry { address, fd, payload, state, finished: 0, behind });
                }
                0 | 1 => {
                    serial += 1;
                    submit(&mut table, address, fd, serial);
                    let state = Naive::Pending;
                    naive.push(Entry {
                        address,
                        fd,
                        payload: serial,
                        state,
                        finished: 0,
                        behind: None,
                    });
                }
                2 => {
                    // Which of those that may begin it is says the table; the small cases below
                    // hold it to the order.
                    let started = table.start();
                    let expected = naive.iter_mut().find(|e| {
                        e.state == Naive::Pending
                            && e.behind.as_ref().is_none_or(Vec::is_empty)
                            && started.is_none_or(|(_, payload)| payload == e.payload)
                    });
                    match (started, expected) {
                        (Some((id, payload)), Some(entry)) => {
                            assert_eq!(payload, entry.payload, "seed {seed}");
                            entry.state = Naive::Active;
                            running.push((id, payload));
                        }
                        (None, None) => {}
                        _ => panic!("seed {seed}: start disagrees"),
                    }
                }
                3 if !running.is_empty() => {
                    let (id, payload) = running.swap_remove(random.below(running.len()));
                    clock += 1;
                    assert!(matches!(
                        table.finish(id, payload, ok(payload as i64), silence),
                        Finished::Done
                    ));
                    let entry = naive.iter_mut().find(|e| e.payload == payload).unwrap();
                    entry.state = Naive::Done(payload as i64);
                    entry.finished = clock;
                }
                4 => {
                    let expected =
                        naive.iter().find(|e| e.address == address).map(|e| match e.state {
                            Naive::Done(-1) => Progress::Finished(Some(Errno::ECANCELED)),
                            Naive::Done(_) => Progress::Finished(None),
                            _ => Progress::Running,
                        });
                    assert_eq!(table.progress(address), expected, "seed {seed}");
                }
                5 => {
                    let done = |e: &&Entry| matches!(e.state, Naive::Done(_));
                    let any = random.below(2) == 0;
                    let first = naive
                        .iter()
                        .filter(done)
                        .filter(|e| any || e.address == address)
                        .map(|e| e.finished)
                        .min();
                    let got = if any { table.reap_oldest() } else { table.reap(address) };
                    let got = got.map(|r| (r.address, r.payload.unwrap(), r.outcome.status));
                    assert_eq!(got.is_some(), first.is_some(), "seed {seed}");
                    if let Some((address, payload, status)) = got {
                        // What one cancel ended has no order among itself.
                        let at = naive
                            .iter()
                            .position(|e| {
                                (e.address, e.payload, e.state)
                                    == (address, payload, Naive::Done(status))
                            })
                            .unwrap();
                        assert_eq!(Some(naive[at].finished), first, "seed {seed}");
                        naive.remove(at);
                    }
                }
                6 => {
                    let only = (random.below(2) == 0).then_some(address);
                    let got = match only {
                        Some(address) => {
                            table.cancel_one(fd, address, &mut nowhere, silence, &mut |_, _| ())
                        }
                        None => {
                            table.cancel_all(fd, usize::MAX, &mut nowhere, silence, &mut |_, _| ())
                        }
                    };
                    let mut expected = Cancelled::default();
                    clock += 1;
                    for entry in naive
                        .iter_mut()
                        .filter(|e| !matches!(e.state, Naive::Done(_)))
                        .filter(|e| e.fd == fd && only.is_none_or(|only| e.address == only))
                        .take(if only.is_some() { 1 } else { usize::MAX })
                    {
                        match entry.state {
                            Naive::Pending => {
                                expected.cancelled += 1;
                                entry.state = Naive::Done(-1);
                                entry.finished = clock;
                            }
                            Naive::Active => expected.running += 1,
                            Naive::Done(_) => {}
                        }
                    }
                    assert_eq!(got, expected, "seed {seed}");
                }
                _ => assert_eq!(table.count(), naive.len(), "seed {seed}"),
            }
            while table.next_fired().is_some() {}
            let unfinished: Vec<u64> = naive
                .iter()
                .filter(|e| !matches!(e.state, Naive::Done(_)))
                .map(|e| e.payload)
                .collect();
            for behind in naive.iter_mut().filter_map(|e| e.behind.as_mut()) {
                behind.retain(|payload| unfinished.contains(payload));
            }
        }
        // Rundown finds everything that is not running.
        let found: Vec<_> = core::iter::from_fn(|| table.rundown(&mut nowhere)).collect();
        while let Disowned::One { .. } = table.disown() {}
        assert_eq!(table.count(), 0);
        assert_eq!(found.len() + running.len(), naive.len());
        assert_eq!(table.orphans_awaited(), running.len());
        let total = running.len();
        for (index, (id, payload)) in running.into_iter().enumerate() {
            let Finished::Gone { last, .. } = table.finish(id, payload, ok(0), silence) else {
                panic!("an orphan was kept")
            };
            assert_eq!(last, index + 1 == total);
        }
        assert_eq!(table.running(), 0);
    }
}

#[test]
fn a_waiter_is_fired_by_its_own_requests_only() {
    let mut table = Numbers::default();
    for address in 1..=4 {
        submit(&mut table, address, 0, address);
    }
    room(&mut table, Room::Waits(8));
    let Suspend::Wait(first) = table.suspend(&[1, 0, 3]) else { panic!("must wait") };
    let Suspend::Wait(second) = table.suspend(&[2, 3]) else { panic!("must wait") };
    let jobs: Vec<_> = core::iter::from_fn(|| table.start()).collect();
    let finish = |table: &mut Numbers, index: usize| {
        let (id, payload) = jobs[index];
        table.finish(id, payload, ok(1), silence);
    };
    finish(&mut table, 3);
    assert_eq!(table.next_fired(), None);
    finish(&mut table, 0);
    assert_eq!(table.next_fired(), Some(first));
    assert_eq!(table.next_fired(), None);
    assert!(table.has_fired(first) && !table.has_fired(second));
    finish(&mut table, 2);
    let mut both = [table.next_fired().unwrap(), table.next_fired().unwrap()];
    both.sort_unstable();
    assert_eq!(both, [first.min(second), first.max(second)]);
    table.leave(first);
    table.leave(second);
    assert!(!table.has_waiters() && table.waits.is_empty());
    assert_eq!(table.suspend(&[1]), Suspend::Ready);
    assert_eq!(table.suspend(&[9, 0]), Suspend::Ready);
    assert!(!table.has_waiters());
}

#[test]
fn naming_a_request_often_takes_one_wait() {
    let mut table = Numbers::default();
    for payload in 0..3 {
        submit(&mut table, 1, 0, payload);
    }
    room(&mut table, Room::Waits(3));
    let Suspend::Wait(waiter) = table.suspend(&[1; 500]) else { panic!("must wait") };
    assert_eq!(table.waits.len(), 3);
    table.leave(waiter);
    assert!(table.waits.is_empty());
}

#[test]
fn a_waiter_waits_for_every_request_of_an_address() {
    let mut table = Numbers::default();
    submit(&mut table, 1, 0, 10);
    submit(&mut table, 1, 0, 11);
    room(&mut table, Room::Waits(2));
    let Suspend::Wait(waiter) = table.suspend(&[1]) else { panic!("must wait") };
    let (_, _) = table.start().unwrap();
    let (second, payload) = table.start().unwrap();
    table.finish(second, payload, ok(1), silence);
    assert_eq!(table.next_fired(), Some(waiter));
    table.leave(waiter);
    assert_eq!(table.suspend(&[1]), Suspend::Ready);
}

/// L2 of the bug catalogue: a sync waits for the requests before it and for no other.
#[test]
fn aio_l2_a_sync_counts_what_is_before_it_exactly() {
    let mut table = Numbers::default();
    submit(&mut table, 1, 5, 1);
    submit(&mut table, 2, 6, 2);
    submit_sync(&mut table, 3, 5, 3);
    submit(&mut table, 4, 5, 4);
    submit_sync(&mut table, 5, 5, 5);
    let mut jobs: Vec<_> = core::iter::from_fn(|| table.start()).collect();
    assert_eq!(jobs.iter().map(|job| job.1).collect::<Vec<_>>(), [1, 2, 4]);
    let mut finish = |table: &mut Numbers, payload: u64| {
        let at = jobs.iter().position(|job| job.1 == payload).unwrap();
        let (id, payload) = jobs.swap_remove(at);
        table.finish(id, payload, ok(0), silence);
    };
    finish(&mut table, 4);
    assert!(table.start().is_none(), "the first request is still before both");
    finish(&mut table, 1);
    let mut started = [table.start().unwrap().1, table.start().unwrap().1];
    started.sort_unstable();
    assert_eq!(started, [3, 5], "a sync does not wait for a sync");
    // A sync that is cancelled while it waits leaves nothing behind.
    submit(&mut table, 6, 7, 6);
    submit_sync(&mut table, 7, 7, 7);
    let mut seen = Vec::new();
    let mut see = |&payload: &u64, outcome: &Outcome| seen.push((payload, outcome.error));
    assert_eq!(table.cancel_one(7, 7, &mut nowhere, silence, &mut see).cancelled, 1);
    assert_eq!(table.cancel_one(7, 7, &mut nowhere, silence, &mut see).cancelled, 0);
    assert_eq!(seen.len(), 1, "a request is seen when it is cancelled, once");
    assert_eq!(seen[0].1, Some(Errno::ECANCELED));
    // Cancelling what is before a sync lets it begin.
    submit_sync(&mut table, 8, 7, 8);
    assert_eq!(table.cancel_one(7, 6, &mut nowhere, silence, &mut |_, _| ()).cancelled, 1);
    assert_eq!(table.start().map(|job| job.1), Some(8));
}

#[test]
fn each_completion_fires_one_thread_that_waits_for_any() {
    let mut table = Numbers::default();
    for address in 1..=3 {
        submit(&mut table, address, 0, address);
    }
    room(&mut table, Room::Waits(0));
    let first = table.enter();
    table.wait_any(first);
    room(&mut table, Room::Waits(0));
    let second = table.enter();
    table.wait_any(second);
    let jobs: Vec<_> = core::iter::from_fn(|| table.start()).collect();
    for (index, expected) in [Some(first), Some(second), None].into_iter().enumerate() {
        table.finish(jobs[index].0, jobs[index].1, ok(1), silence);
        assert_eq!(table.next_fired(), expected);
    }
    // A thread that leaves between being fired and being woken is not woken.
    table.leave(first);
    table.wait_any(second);
    submit(&mut table, 4, 0, 4);
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), silence);
    table.leave(second);
    assert_eq!(table.next_fired(), None);
}

#[test]
fn a_chunked_cancel_says_when_it_is_through() {
    let mut table = Numbers::default();
    for address in 1..=10 {
        submit(&mut table, address, 7, address);
    }
    assert_eq!(table.cancel_all(7, 4, &mut nowhere, silence, &mut |_, _| ()).cancelled, 4);
    assert_eq!(table.cancel_all(7, 4, &mut nowhere, silence, &mut |_, _| ()).cancelled, 4);
    assert_eq!(table.cancel_all(7, 4, &mut nowhere, silence, &mut |_, _| ()).cancelled, 2);
    assert_eq!(table.pending(), 0);
    assert_eq!(table.count(), 10);
}

#[test]
fn cancelling_those_of_a_descriptor_passes_the_others_once_or_twice() {
    const EACH: usize = 5000;
    const CHUNK: usize = 64;
    let mut table = Numbers::default();
    for address in 0..2 * EACH as u64 {
        submit(&mut table, address, (address % 2) as i32, address);
    }
    let mut cancelled = 0;
    loop {
        let now = table.cancel_all(1, CHUNK, &mut nowhere, silence, &mut |_, _| ()).cancelled;
        cancelled += now;
        if now < CHUNK {
            break;
        }
    }
    assert_eq!((cancelled, table.pending()), (EACH, EACH));
    assert!(table.passed <= 4 * EACH, "{} others looked at", table.passed);
    // The others keep their order.
    for address in (0..2 * EACH as u64).step_by(2) {
        assert_eq!(table.start().unwrap().1, address);
    }
}

#[test]
fn parked_requests_of_other_descriptors_are_hardly_looked_at() {
    const EACH: u64 = 100;
    const FDS: u64 = 500;
    const CHUNK: usize = 64;
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    for address in 0..EACH * FDS {
        park_of(&mut table, &mut queue, address, (address % FDS) as i32);
    }
    for fd in [7, 499] {
        table.passed = 0;
        let (mut cancelled, mut calls) = (0, 0);
        loop {
            let mut give_back = give_back(&mut queue, 0);
            let now = table.cancel_all(fd, CHUNK, &mut give_back, |_, _| (), &mut |_, _| ());
            cancelled += now.cancelled;
            calls += 1;
            if now.cancelled < CHUNK {
                break;
            }
        }
        assert_eq!((cancelled, calls), (EACH as usize, 2));
        let share = (EACH * FDS) as usize / PARKED_LISTS;
        assert!(table.passed <= 3 * share, "{} others looked at", table.passed);
    }
    assert_eq!(table.waiting(), (EACH * (FDS - 2)) as usize);
}

#[test]
fn parked_requests_that_share_a_list_are_passed_once_or_twice() {
    const EACH: u64 = 5000;
    const OTHER: i32 = 7 + PARKED_LISTS as i32;
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    for address in 0..2 * EACH {
        park_of(&mut table, &mut queue, address, if address % 2 == 0 { 7 } else { OTHER });
    }
    let mut cancelled = 0;
    while cancelled < EACH as usize {
        let mut give_back = give_back(&mut queue, 0);
        let now = table.cancel_all(7, 64, &mut give_back, |_, _| (), &mut |_, _| ());
        assert!(now.cancelled > 0, "{cancelled} of {EACH} cancelled");
        cancelled += now.cancelled;
    }
    assert!(table.passed <= 2 * EACH as usize, "{} others looked at", table.passed);
    assert_eq!(table.waiting(), EACH as usize);
}

#[test]
fn a_sync_that_a_cancel_lets_begin_hides_nothing_from_it() {
    let mut table = Numbers::default();
    // One file, two descriptors: the sync of one waits for the writes of the other.
    for address in 1..=3 {
        submit(&mut table, address, 5, address);
    }
    room(&mut table, Room::Request);
    let sync = Submission { address: 9, fd: 6, file: 5, syncs: true, awaited: true, changes: 0 };
    table.submit(&sync, 9, None, None);
    for address in 11..=13 {
        submit(&mut table, address, 5, address);
    }
    let all = table.cancel_all(5, 64, &mut nowhere, silence, &mut |_, _| ());
    assert_eq!(all, Cancelled { cancelled: 6, short: 0, running: 0 });
    assert_eq!(table.start().unwrap().1, 9);
}

/// Submits a request with a notice, of a list if there is one.
fn submit_noted(table: &mut Numbers, address: u64, notice: u32, group: Option<Id>) {
    room(table, Room::Request);
    let submission =
        Submission { address, fd: 1, file: 1, syncs: false, awaited: true, changes: 0 };
    table.submit(&submission, address, Some(notice), group);
}

fn open(table: &mut Numbers, notice: u32) -> Id {
    room(table, Room::Group);
    table.open_group(Some(notice))
}

#[test]
fn a_list_is_told_once_after_its_last_request_and_goes_with_the_last_reap() {
    let mut table = Numbers::default();
    let list = open(&mut table, 100);
    submit_noted(&mut table, 1, 1, Some(list));
    submit_noted(&mut table, 2, 2, Some(list));
    let mut told = Vec::new();
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), |notice, news| told.push((*notice, news)));
    assert!(!table.close_group(list, |_, _| panic!("one is not finished")));
    assert_eq!(table.leave_group(list), None);
    let cancelled = table.cancel_one(
        1,
        2,
        &mut nowhere,
        |notice, news| told.push((*notice, news)),
        &mut |_, _| (),
    );
    assert_eq!(cancelled.cancelled, 1);
    let expected = [
        (1, News::Request(None)),
        (2, News::Request(Some(Errno::ECANCELED))),
        (100, News::Group { lasts: true }),
    ];
    assert_eq!(told, expected);
    let first = table.reap(1).unwrap();
    assert_eq!((first.notice, first.group), (Some(1), None));
    let second = table.reap(2).unwrap();
    assert_eq!((second.notice, second.group), (Some(2), Some(100)));
}

#[test]
fn a_list_whose_requests_are_reaped_during_the_call_is_told_by_the_call() {
    let mut table = Numbers::default();
    let list = open(&mut table, 100);
    submit_noted(&mut table, 1, 1, Some(list));
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), |notice, _| assert_eq!(*notice, 1));
    assert_eq!(table.reap(1).unwrap().group, None);
    let mut told = Vec::new();
    assert!(table.close_group(list, |notice, news| told.push((*notice, news))));
    assert_eq!(told, [(100, News::Group { lasts: false })]);
    assert_eq!(table.leave_group(list), Some(100));
}

#[test]
fn a_thread_that_waits_for_a_list_is_fired_by_its_last_request_only() {
    let mut table = Numbers::default();
    let list = open(&mut table, 100);
    submit_noted(&mut table, 1, 1, Some(list));
    submit_noted(&mut table, 2, 2, Some(list));
    room(&mut table, Room::Waits(0));
    let waiter = table.enter();
    assert!(!table.close_group(list, silence));
    table.await_group(list, waiter);
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), silence);
    assert!(!table.has_fired(waiter));
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), silence);
    assert!(table.has_fired(waiter));
    assert_eq!(table.next_fired(), Some(waiter));
    table.leave(waiter);
    assert_eq!(table.leave_group(list), None);
}

#[test]
fn a_process_that_goes_takes_lists_and_notices_with_it() {
    let mut table = Numbers::default();
    let list = open(&mut table, 100);
    submit_noted(&mut table, 1, 1, Some(list));
    submit_noted(&mut table, 2, 2, Some(list));
    assert!(!table.close_group(list, silence));
    assert_eq!(table.leave_group(list), None);
    let (id, payload) = table.start().unwrap();
    let gone = table.rundown(&mut nowhere).unwrap();
    assert_eq!((gone.notice, gone.group), (Some(2), None));
    assert!(table.rundown(&mut nowhere).is_none());
    let Disowned::One { notice, group } = table.disown() else { panic!("one runs") };
    assert_eq!((notice, group), (Some(1), Some(100)));
    assert!(matches!(table.disown(), Disowned::Nothing));
    let told = |_: &mut u32, _: News| panic!("nobody is there");
    assert!(matches!(table.finish(id, payload, ok(1), told), Finished::Gone { last: true, .. }));
}

/// A socket's queue: what it holds, by ticket.
type Queue = std::collections::BTreeMap<u32, u64>;
type Parking = Table<u64, u32, u32>;

fn park(table: &mut Parking, queue: &mut Queue, address: u64) -> Id {
    park_of(table, queue, address, 3)
}

fn park_of(table: &mut Parking, queue: &mut Queue, address: u64, fd: i32) -> Id {
    while let Some(need) = table.lacks(Room::Request) {
        table.grow(&mut Memory::new(need));
    }
    let submission = Submission { address, fd, file: 9, syncs: false, awaited: false, changes: 0 };
    let mut given = NONE;
    table.submit_parked(&submission, address, None, None, |id, payload| {
        queue.insert(id, payload);
        given = id;
        id
    });
    given
}

/// What a queue does that is asked for a request: `short` of them are done in part.
fn give_back(queue: &mut Queue, short: i64) -> impl FnMut(&u32) -> Option<(u64, Outcome)> {
    move |ticket| {
        let payload = queue.remove(ticket)?;
        let outcome = match short {
            0 => Outcome::CANCELED,
            _ => Outcome { status: short, error: None, ..Outcome::CANCELED },
        };
        Some((payload, outcome))
    }
}

#[test]
fn a_parked_request_is_cancelled_when_its_queue_gives_it_back() {
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    park(&mut table, &mut queue, 10);
    assert_eq!((table.pending(), table.count()), (0, 1));
    assert_eq!(table.progress(10), Some(Progress::Running));
    let cancelled =
        table.cancel_one(3, 10, &mut give_back(&mut queue, 0), |_, _| (), &mut |_, _| ());
    assert_eq!(cancelled, Cancelled { cancelled: 1, short: 0, running: 0 });
    assert_eq!(table.reap(10).unwrap().outcome, Outcome::CANCELED);
}

#[test]
fn a_parked_request_done_in_part_ends_short_and_is_not_cancelled() {
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    park(&mut table, &mut queue, 10);
    let cancelled =
        table.cancel_all(3, 64, &mut give_back(&mut queue, 7), |_, _| (), &mut |_, _| ());
    assert_eq!(cancelled, Cancelled { cancelled: 0, short: 1, running: 0 });
    assert_eq!(table.reap(10).unwrap().outcome.status, 7);
}

#[test]
fn a_parked_request_that_runs_is_not_queued_again_once_its_end_was_asked_for() {
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    let id = park(&mut table, &mut queue, 10);
    let payload = queue.remove(&id).unwrap();
    assert!(table.may_park(id));
    queue.insert(77, payload);
    table.park_again(id, 77);
    // Taken out once more, and cancelled before it is back.
    let payload = queue.remove(&77).unwrap();
    let cancelled =
        table.cancel_one(3, 10, &mut give_back(&mut queue, 0), |_, _| (), &mut |_, _| ());
    assert_eq!(cancelled, Cancelled { cancelled: 0, short: 0, running: 1 });
    assert!(!table.may_park(id));
    let done = table.finish(id, payload, Outcome::CANCELED, |_, _| ());
    assert!(matches!(done, Finished::Done));
    assert_eq!(table.reap(10).unwrap().payload, Some(10));
}

#[test]
fn a_process_that_goes_takes_its_parked_requests_back_and_leaves_those_that_run() {
    let (mut table, mut queue) = (Parking::default(), Queue::new());
    let runs = park(&mut table, &mut queue, 1);
    for address in 2..200 {
        park(&mut table, &mut queue, address);
    }
    let payload = queue.remove(&runs).unwrap();
    let mut gone = 0;
    while table.rundown(&mut give_back(&mut queue, 0)).is_some() {
        gone += 1;
    }
    assert_eq!(gone, 198);
    assert!(matches!(table.disown(), Disowned::One { .. }));
    assert!(matches!(table.disown(), Disowned::Nothing));
    assert!(!table.may_park(runs));
    let end = table.finish(runs, payload, Outcome::CANCELED, |_, _| ());
    assert!(matches!(end, Finished::Gone { .. }));
}

#[test]
fn a_request_that_is_done_when_it_is_submitted_is_told_and_reaped_like_any() {
    let mut table = Numbers::default();
    let list = open(&mut table, 100);
    room(&mut table, Room::Request);
    let submission =
        Submission { address: 1, fd: 1, file: 1, syncs: false, awaited: true, changes: 9 };
    let mut told = Vec::new();
    let tell = |notice: &mut u32, news| told.push((*notice, news));
    table.submit_done(&submission, ok(5), Some(7), Some(list), tell);
    assert_eq!(told, [(7, News::Request(None))]);
    assert_eq!(table.progress(1), Some(Progress::Finished(None)));
    assert!(table.close_group(list, silence));
    assert_eq!(table.leave_group(list), None);
    let reaped = table.reap(1).unwrap();
    assert_eq!((reaped.payload, reaped.outcome.status, reaped.group), (None, 5, Some(100)));
}

#[test]
fn a_change_counts_until_it_is_finished_cancelled_or_dropped() {
    let mut table = Numbers::default();
    let unfinished = table.glance().clone();
    for address in 1..=3 {
        room(&mut table, Room::Request);
        let submission =
            Submission { address, fd: 1, file: 1, syncs: false, awaited: true, changes: 9 };
        table.submit(&submission, address, None, None);
    }
    let (id, payload) = table.start().unwrap();
    table.finish(id, payload, ok(1), silence);
    assert_eq!(table.cancel_one(1, 2, &mut nowhere, silence, &mut |_, _| ()).cancelled, 1);
    assert!(unfinished.any_change(9));
    // One that is done is forgotten first or last; neither counts any more.
    while table.rundown(&mut nowhere).is_some() {}
    assert!(!unfinished.any_change(9));
}

/// A disk's driver performs it: no worker ever had it, and a sync of its file waits for it.
#[test]
fn a_request_can_run_from_the_start() {
    let mut table = Numbers::default();
    room(&mut table, Room::Group);
    let group = table.open_group(Some(9));
    room(&mut table, Room::Request);
    let submission =
        Submission { address: 0x1000, fd: 3, file: 3, syncs: false, awaited: true, changes: 0 };
    let id = table.submit_running(&submission, Some(7), Some(group));
    submit_sync(&mut table, 0x2000, 3, 22);
    assert_eq!((table.count(), table.running(), table.pending()), (2, 1, 0));
    assert_eq!(table.progress(0x1000), Some(Progress::Running));
    let none = table.cancel_one(3, 0x1000, &mut nowhere, silence, &mut |_, _| ());
    assert_eq!(none, Cancelled { cancelled: 0, running: 1, ..Cancelled::default() });
    table.close_group(group, silence);
    assert!(table.leave_group(group).is_none());
    let mut told = Vec::new();
    let finished = table.finish(id, 11, ok(512), |&mut notice, news| told.push((notice, news)));
    assert!(matches!(finished, Finished::Done));
    let group = (9, News::Group { lasts: true });
    assert_eq!(told, [(7, News::Request(None)), group]);
    assert_eq!(table.start().map(|(_, payload)| payload), Some(22));
    let reaped = table.reap(0x1000).unwrap();
    assert_eq!((reaped.payload, reaped.outcome, reaped.group), (Some(11), ok(512), Some(9)));
}
