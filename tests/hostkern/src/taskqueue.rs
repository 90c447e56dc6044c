// SPDX-License-Identifier: BSD-2-Clause
//! The kernel's task queue (taskqueue(9), taskqueue_thread): one thread that does what must not be
//! done where it is noticed. A task that is queued is not queued again; one that runs may be.

use std::collections::VecDeque;

use crate::state::Held;
use crate::{kqueue, proc, sched, socket_tasks};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Workers for sockets are wanted.
    SocketWorkers,
    /// Other kqueues look at this one, which has something to report.
    Kqueue(usize),
}

struct Queue {
    tasks: VecDeque<Task>,
    /// The thread is there.
    started: bool,
    stopping: bool,
}

static QUEUE: Held<Queue> =
    Held::new(Queue { tasks: VecDeque::new(), started: false, stopping: false });

/// Where the thread waits: odd, as all channels of ours.
const CHAN: u64 = 0x46 << 56 | 3;

/// Queues a task, unless it is queued. Starts the thread with the first one.
pub fn enqueue(task: Task) {
    let first = QUEUE.with(|queue| {
        if !queue.tasks.contains(&task) {
            queue.tasks.push_back(task);
        }
        !std::mem::replace(&mut queue.started, true)
    });
    if first {
        proc::start_kernel(run);
    }
    sched::wakeup(CHAN, false);
}

fn run() {
    loop {
        match QUEUE.with(|queue| (queue.tasks.pop_front(), queue.stopping)) {
            (Some(Task::SocketWorkers), _) => socket_tasks::start_workers(),
            (Some(Task::Kqueue(id)), _) => kqueue::tell_watchers(id),
            (None, true) => break,
            (None, false) => {
                sched::sleep(CHAN, false, "-", None, || ());
            }
        }
        sched::point();
    }
}

/// Drains it and ends the thread, when no process is left.
pub fn stop() {
    QUEUE.with(|queue| queue.stopping = true);
    sched::wakeup(CHAN, false);
}
