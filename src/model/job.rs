// SPDX-License-Identifier: BSD-2-Clause
//! The life of one request, as a table of states by events.
//!
//! ```text
//!             Ready    Park     Withdraw  Start    Finish    Cancel           Reap         Rundown
//! Held        Pending  -        -         -        -         Done+cancelled   refused      Gone
//! Pending     -        Parked   -         Active   -         Done+cancelled   refused      Gone
//! Parked      -        Parked   Pending   Active   Done      -                refused      -
//! Active      -        -        -         -        Done      refused          refused      Orphan
//! Done        -        -        -         -        -         refused          Gone         Gone
//! Orphan      -        -        -         -        Gone      -                -            -
//! ```
//! `-` cannot happen: whoever holds the right to that event does not exist in that state. A refused
//! event leaves the state as it was and is an answer to the user (AIO_NOTCANCELED, AIO_ALLDONE,
//! EINVAL).

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Accepted; it waits for earlier requests of its file (aio_fsync(2)). It can be cancelled.
    Held,
    /// Accepted; no worker has it. It can be cancelled.
    Pending,
    /// It waits for its socket, or a thread tries it and may queue it there again. Whoever wants to
    /// cancel it, or lets its process go, asks the socket's queue first: either the request is given
    /// back (Withdraw) or it runs, and is not to be queued again (Start).
    Parked,
    /// A worker performs it.
    Active,
    /// Finished or cancelled; the result waits to be reaped.
    Done,
    /// A worker performs it, for a process that has exited or replaced its image.
    Orphan,
}

/// What can happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing it waits for is left.
    Ready,
    /// It is queued at its socket, for the first time or again.
    Park,
    /// Its socket's queue gave it back.
    Withdraw,
    /// A worker takes it, or turns out to have it.
    Start,
    /// The worker has the result.
    Finish,
    /// aio_cancel(2) chose it.
    Cancel,
    /// aio_return(2) or aio_waitcomplete(2) chose it.
    Reap,
    /// Its process exits or replaces its image.
    Rundown,
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The request is now in this state.
    To(JobState),
    /// The request is gone; its resources are the caller's to drop.
    Gone,
    /// Nothing changed: the user asked for something this state does not allow.
    Refused,
}

impl JobState {
    /// Returns what `event` does to a request in this state; `None` when it cannot happen.
    pub const fn step(self, event: Event) -> Option<Step> {
        use Event::*;
        use JobState::*;
        Some(match (self, event) {
            (Held, Ready) => Step::To(Pending),
            (Pending | Parked, Park) => Step::To(Parked),
            (Parked, Withdraw) => Step::To(Pending),
            (Pending | Parked, Start) => Step::To(Active),
            (Parked | Active, Finish) | (Held | Pending, Cancel) => Step::To(Done),
            (Active | Done, Cancel) | (Held | Pending | Parked | Active, Reap) => Step::Refused,
            (Done, Reap) | (Held | Pending | Done, Rundown) | (Orphan, Finish) => Step::Gone,
            (Active, Rundown) => Step::To(Orphan),
            (Pending | Parked | Active | Done | Orphan, Ready) => return None,
            (Held | Active | Done | Orphan, Park) => return None,
            (Held | Pending | Active | Done | Orphan, Withdraw) => return None,
            (Held | Pending | Done, Finish) | (Held | Active | Done, Start) => return None,
            (Parked, Cancel | Rundown) => return None,
            (Orphan, Start | Cancel | Reap | Rundown) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table at the top of this file, read as the test's expectation.
    #[test]
    fn every_state_by_every_event_is_as_the_table_says() {
        let text = include_str!("job.rs");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip_while(|line| !line.contains("Ready    Park     Withdraw"))
            .take(7)
            .map(|line| line.trim_start_matches("//!").split_whitespace().collect())
            .collect();
        let events = [
            Event::Ready,
            Event::Park,
            Event::Withdraw,
            Event::Start,
            Event::Finish,
            Event::Cancel,
            Event::Reap,
            Event::Rundown,
        ];
        let names: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(rows[0], names);
        let states = [
            JobState::Held,
            JobState::Pending,
            JobState::Parked,
            JobState::Active,
            JobState::Done,
            JobState::Orphan,
        ];
        for (state, row) in states.iter().zip(&rows[1..]) {
            assert_eq!(row[0], format!("{state:?}"));
            for (event, cell) in events.iter().zip(&row[1..]) {
                let expected = match *cell {
                    "-" => None,
                    "refused" => Some(Step::Refused),
                    "Gone" => Some(Step::Gone),
                    "Pending" => Some(Step::To(JobState::Pending)),
                    "Parked" => Some(Step::To(JobState::Parked)),
                    "Active" => Some(Step::To(JobState::Active)),
                    "Done" | "Done+cancelled" => Some(Step::To(JobState::Done)),
                    "Orphan" => Some(Step::To(JobState::Orphan)),
                    other => panic!("unknown cell {other}"),
                };
                assert_eq!(state.step(*event), expected, "{state:?} by {event:?}");
            }
        }
    }
}
