// SPDX-License-Identifier: BSD-2-Clause
//! Histories that are right, and for each rule one that breaks it.

use super::model::{
    ALLDONE, Answer, CANCELED, Call, EAGAIN, ECANCELED, EINPROGRESS, EINVAL, Kind, Model,
    NOTCANCELED, Verdict, Wanted,
};
use Answer::{Collected, Events, Failed, Value};

const PID: i32 = 7;
const A: u64 = 0x1000;
const B: u64 = 0x2000;

fn request(address: u64, kind: Kind) -> Wanted {
    Wanted { address, kind, bytes: 100, fd: 3, file: 33 }
}

fn submit(address: u64, kind: Kind) -> Call {
    Call::Submit(request(address, kind))
}

fn cancel(address: Option<u64>) -> Call {
    Call::Cancel { fd: 3, file: 33, address, disk: false }
}

/// A call that no other overlaps, by thread 1.
fn call(model: &mut Model, call: Call, answer: Answer) -> Verdict {
    model.begin(1, PID, call);
    model.end(1, &answer)
}

/// A model in which a read has been accepted under `A`.
fn with_read() -> Model {
    let mut model = Model::default();
    call(&mut model, submit(A, Kind::Read), Value(0)).expect("accepted");
    model
}

/// The last of these calls is wrong, for a reason that has `why` in it; the others are not.
fn wrong(model: &mut Model, calls: &[(Call, Answer)], why: &str) {
    let (last, before) = calls.split_last().expect("some");
    for (made, answer) in before {
        call(model, made.clone(), answer.clone()).expect("right so far");
    }
    let verdict = call(model, last.0.clone(), last.1.clone());
    assert!(verdict.as_ref().is_err_and(|text| text.contains(why)), "{verdict:?}, not {why}");
}

#[test]
fn a_life_is_right() {
    let mut model = with_read();
    for (made, answer) in [
        (Call::Error(A), Value(EINPROGRESS.into())),
        (Call::Return(A), Failed(EINVAL)),
        (Call::Suspend(vec![A]), Value(0)),
        (Call::Error(A), Value(0)),
        (cancel(Some(A)), Value(ALLDONE)),
        (Call::Kevent, Events(vec![A])),
        (Call::Return(A), Value(100)),
        (Call::Error(A), Value(EINVAL.into())),
        (Call::Return(A), Failed(EINVAL)),
        (Call::WaitComplete, Failed(EAGAIN)),
        (submit(A, Kind::Write), Value(0)),
        (Call::WaitComplete, Collected(A, Ok(0))),
    ] {
        call(&mut model, made.clone(), answer).unwrap_or_else(|why| panic!("{made:?}: {why}"));
    }
    assert_eq!((model.requests, model.judged), (2, 13));
}

#[test]
fn what_is_done_stays_done() {
    let mut model = with_read();
    let done = (Call::Error(A), Value(0));
    wrong(&mut model, &[done, (Call::Error(A), Value(EINPROGRESS.into()))], "in progress again");
}

#[test]
fn an_outcome_stays() {
    let mut model = with_read();
    let done = (Call::Error(A), Value(0));
    wrong(&mut model, &[done.clone(), (Call::Error(A), Value(5))], "ended with 0, and then with 5");
    let mut model = with_read();
    wrong(&mut model, &[done, (Call::Return(A), Failed(5))], "ended with 0, and then with 5");
}

#[test]
fn nothing_is_collected_twice() {
    let mut model = with_read();
    let first = (Call::Return(A), Value(10));
    wrong(&mut model, &[first.clone(), (Call::Return(A), Value(10))], "collected twice");
    let mut model = with_read();
    let again = (Call::WaitComplete, Collected(A, Ok(10)));
    wrong(&mut model, &[first, again], "collected twice");
}

#[test]
fn what_was_refused_is_not_collected() {
    let mut model = Model::default();
    model.begin(1, PID, submit(A, Kind::Read));
    call_of(&mut model, 2, Call::WaitComplete, Collected(A, Ok(1))).expect("on its way");
    assert!(model.end(1, &Failed(EAGAIN)).is_err_and(|why| why.contains("refused")));
}

/// A call by another thread.
fn call_of(model: &mut Model, thread: u64, call: Call, answer: Answer) -> Verdict {
    model.begin(thread, PID, call);
    model.end(thread, &answer)
}

#[test]
fn what_was_never_submitted_is_not_collected() {
    let mut model = with_read();
    wrong(&mut model, &[(Call::Return(B), Value(0))], "never submitted");
    wrong(&mut model, &[(Call::WaitComplete, Collected(B, Ok(0)))], "never submitted");
}

#[test]
fn no_more_is_moved_than_asked_for() {
    let mut model = with_read();
    wrong(&mut model, &[(Call::Return(A), Value(101))], "moved 101 bytes of 100");
    let mut model = Model::default();
    call(&mut model, submit(A, Kind::Sync), Value(0)).expect("accepted");
    wrong(&mut model, &[(Call::Return(A), Value(1))], "moved 1 bytes of 0");
}

#[test]
fn what_is_done_can_be_collected() {
    let mut model = with_read();
    let done = (Call::Error(A), Value(0));
    wrong(&mut model, &[done.clone(), (Call::Return(A), Failed(EINVAL))], "cannot be collected");
    let mut model = with_read();
    wrong(&mut model, &[done, (Call::WaitComplete, Failed(EAGAIN))], "found nothing");
}

#[test]
fn a_collector_on_its_way_explains_what_is_missing() {
    let mut model = with_read();
    call(&mut model, Call::Error(A), Value(0)).expect("done");
    model.begin(2, PID, Call::WaitComplete);
    call(&mut model, Call::Return(A), Failed(EINVAL)).expect("the other has it");
    call(&mut model, Call::Error(A), Value(EINPROGRESS.into())).expect("the aiocb's words");
    model.end(2, &Collected(A, Ok(3))).expect("here it is");
}

#[test]
fn nothing_is_cancelled_unasked() {
    let mut model = with_read();
    wrong(&mut model, &[(Call::Error(A), Value(ECANCELED.into()))], "nobody asked");
    // Nor by a cancellation that was over before.
    let mut model = Model::default();
    call(&mut model, cancel(None), Value(ALLDONE)).expect("nothing there");
    call(&mut model, submit(A, Kind::Read), Value(0)).expect("accepted");
    wrong(&mut model, &[(Call::Return(A), Failed(ECANCELED))], "nobody asked");
}

#[test]
fn a_cancellation_on_its_way_reaches_what_comes() {
    let mut model = Model::default();
    model.begin(2, PID, cancel(None));
    call(&mut model, submit(A, Kind::Read), Value(0)).expect("accepted");
    call(&mut model, Call::Return(A), Failed(ECANCELED)).expect("cancelled");
}

#[test]
fn what_cancel_says_holds() {
    let cancelled = (cancel(Some(A)), Value(CANCELED));
    wrong(&mut with_read(), &[cancelled.clone(), (Call::Return(A), Value(9))], "and then with 0");
    let open = (Call::Error(A), Value(EINPROGRESS.into()));
    wrong(&mut with_read(), &[cancelled, open.clone()], "in progress again");
    let all = (cancel(None), Value(ALLDONE));
    wrong(&mut with_read(), &[all, open.clone()], "in progress again");
    let one = (cancel(Some(A)), Value(ALLDONE));
    wrong(&mut with_read(), &[one, open], "in progress again");
    let done = (Call::Error(A), Value(0));
    let not = (cancel(Some(A)), Value(NOTCANCELED));
    wrong(&mut with_read(), &[done.clone(), not], "in progress again");
    // Of a disk it says so, done or not.
    let of_disk = Call::Cancel { fd: 3, file: 33, address: Some(A), disk: true };
    let mut model = with_read();
    call(&mut model, done.0, done.1).expect("done");
    call(&mut model, of_disk, Value(NOTCANCELED)).expect("a disk's");
}

#[test]
fn suspend_returns_for_a_reason() {
    let both = [submit(A, Kind::Read), submit(B, Kind::Read)];
    let mut model = Model::default();
    for made in both.clone() {
        call(&mut model, made, Value(0)).expect("accepted");
    }
    let open = |address| (Call::Error(address), Value(EINPROGRESS.into()));
    let returned = (Call::Suspend(vec![A, 0, B]), Value(0));
    wrong(&mut model, &[returned, open(A), open(B)], "all of its list");
    let mut model = with_read();
    let one = (Call::Suspend(vec![A]), Value(0));
    wrong(&mut model, &[one, open(A)], "in progress again");
    // It does not wait for what is done.
    let mut model = with_read();
    let done = (Call::Error(A), Value(0));
    wrong(&mut model, &[done, (Call::Suspend(vec![A]), Failed(EAGAIN))], "done before");
}

#[test]
fn a_list_that_was_waited_for_is_done() {
    let entries = vec![request(A, Kind::Read), request(B, Kind::Write)];
    let list = |waits| Call::List { waits, entries: entries.clone() };
    let open = (Call::Error(B), Value(EINPROGRESS.into()));
    let mut model = Model::default();
    wrong(&mut model, &[(list(true), Value(0)), open.clone()], "in progress again");
    let mut model = Model::default();
    call(&mut model, list(false), Value(0)).expect("queued");
    call(&mut model, open.0.clone(), open.1.clone()).expect("not waited for");
    // Of one that failed, an entry may not be there.
    let mut model = Model::default();
    call(&mut model, list(true), Failed(5)).expect("an entry failed");
    call(&mut model, Call::Return(A), Failed(EINVAL)).expect("this one perhaps");
    call(&mut model, Call::Return(B), Value(1)).expect("not this one");
}

#[test]
fn a_sync_comes_after_what_was_there() {
    let mut model = Model::default();
    call(&mut model, submit(A, Kind::Write), Value(0)).expect("accepted");
    call(&mut model, submit(B, Kind::Sync), Value(0)).expect("accepted");
    let open = (Call::Error(A), Value(EINPROGRESS.into()));
    wrong(&mut model, &[(Call::Error(B), Value(0)), open.clone()], "in progress again");
    // What comes after it is no matter, nor another file.
    let mut model = Model::default();
    call(&mut model, submit(B, Kind::Sync), Value(0)).expect("accepted");
    call(&mut model, submit(A, Kind::Write), Value(0)).expect("accepted");
    call(&mut model, Call::Error(B), Value(0)).expect("synced");
    call(&mut model, open.0, open.1).expect("later");
}

#[test]
fn an_event_is_of_what_can_be_collected() {
    let mut model = with_read();
    let event = (Call::Kevent, Events(vec![A]));
    let open = (Call::Error(A), Value(EINPROGRESS.into()));
    wrong(&mut model, &[event.clone(), open], "in progress again");
    let mut model = with_read();
    wrong(&mut model, &[(Call::Return(A), Value(1)), event.clone()], "which was collected");
    // Another process's requests may have that address.
    let mut model = with_read();
    model.shares_files(PID);
    call(&mut model, Call::Return(A), Value(1)).expect("collected");
    call(&mut model, event.0, event.1).expect("perhaps another's");
}

#[test]
fn an_aiocb_used_twice_at_once_is_left_alone() {
    let mut model = with_read();
    call(&mut model, submit(A, Kind::Read), Value(0)).expect("again");
    call(&mut model, Call::Return(A), Value(1)).expect("one of them");
    call(&mut model, Call::Return(A), Value(1)).expect("the other");
    call(&mut model, Call::Error(A), Value(EINPROGRESS.into())).expect("whatever");
    assert_eq!(model.requests, 1);
}

#[test]
fn a_process_that_is_gone_is_forgotten() {
    let mut model = with_read();
    model.begin(2, PID, Call::WaitComplete);
    model.gone(PID);
    call(&mut model, submit(A, Kind::Read), Value(0)).expect("of the next");
    model.end(2, &Collected(B, Ok(1))).expect("nobody's call");
    call(&mut model, Call::Return(A), Value(1)).expect("its only one");
}
