// SPDX-License-Identifier: BSD-2-Clause
//! What happens when no kernel process can be started, and so no worker: EAGAIN, no hang, nothing
//! lost; and when one can be again, everything is served, by however few there are.
//!
//! `noworker FILE` fills the process table, so that the kernel's own fork fails too. It must run
//! as root, alone, and right after the engine was loaded, before anybody has used it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Cb};
use guest::errno::EAGAIN;
use guest::mem::Region;
use guest::out::Text;
use guest::sys::{self, Fork};
use guest::sysctl::get;
use guest::{Args, println};

type Failure = Text<200>;

const SIGKILL: i32 = 9;
const BATCH: usize = 200;
const CHUNK: usize = 4096;
/// Far above any process limit of a test machine.
const MOST: usize = 60_000;

guest::program!(run);

macro_rules! fail {
    ($($what:tt)*) => { return Err(Failure::of(format_args!($($what)*))) };
}

fn run(args: Args) -> i32 {
    let Some(file) = args.plain(&[]).next() else {
        guest::eprintln!("usage: noworker FILE");
        return 2;
    };
    if get("vfs.aio.rs.num_procs") != Some(0) {
        println!("noworker: FAILED: the engine is not loaded, or has workers already");
        return 1;
    }
    let Ok(fd) = sys::open(file, sys::O_RDONLY, 0) else {
        println!("noworker: FAILED: cannot open the file");
        return 1;
    };
    let Ok(memory) = Region::map(BATCH * 256 + BATCH * CHUNK) else {
        println!("noworker: FAILED: no memory");
        return 1;
    };
    let mut children = Children { first: 0, count: 0 };
    let result = children.fill().and_then(|()| scenario(&mut children, fd, &memory));
    children.kill();
    let result = result.and_then(|()| batch(fd, &memory, "with room for workers"));
    match result {
        Ok(()) => {
            println!("noworker: ok workers={}", get("vfs.aio.rs.num_procs").unwrap_or(0));
            0
        }
        Err(why) => {
            println!("noworker: FAILED: {}", why.as_str());
            1
        }
    }
}

/// Processes that only take up room. They are a process group, and die by one signal.
struct Children {
    first: i32,
    count: usize,
}

impl Children {
    fn fill(&mut self) -> Result<(), Failure> {
        while self.count < MOST {
            match sys::fork() {
                Ok(Fork::Child) => loop {
                    guest::time::sleep_ms(1_000_000);
                },
                Ok(Fork::Parent(pid)) => {
                    if self.first == 0 {
                        self.first = pid;
                    }
                    let _ = sys::setpgid(pid, self.first);
                    self.count += 1;
                }
                Err(error) if error == EAGAIN => {
                    println!("noworker: {} processes fill the table", self.count);
                    return Ok(());
                }
                Err(error) => fail!("fork: {error}"),
            }
        }
        fail!("the process table has no end")
    }

    /// Makes room for `count` processes.
    fn shrink(&mut self, count: usize) {
        // Not the group's first, by whose number the others are killed.
        for pid in (self.first + 1)..(self.first + 1 + count as i32) {
            let _ = sys::kill(pid, SIGKILL);
            let _ = sys::wait_for(pid);
            self.count -= 1;
        }
    }

    fn kill(&mut self) {
        if self.first != 0 {
            let _ = sys::kill(-self.first, SIGKILL);
        }
        while let Ok(Some(_)) = sys::wait(-1, 0) {}
        self.count = 0;
    }
}

fn scenario(children: &mut Children, fd: i32, memory: &Region) -> Result<(), Failure> {
    let queued = get("vfs.aio.num_queue_count");
    let cb = Cb::at(memory, 0);
    for attempt in 0..3 {
        cb.set(aio::request(fd, 0, memory.part(BATCH * 256, CHUNK).addr(), CHUNK));
        match aio::read(cb.addr()) {
            Err(error) if error == EAGAIN => {}
            other => fail!("attempt {attempt} without any worker: {other:?}"),
        }
        match aio::error(cb.addr()) {
            Ok(code) if code == EAGAIN.0 => {}
            other => fail!("aio_error after attempt {attempt}: {other:?}"),
        }
    }
    if get("vfs.aio.num_queue_count") != queued {
        fail!("a refused request is counted");
    }
    children.shrink(1);
    // One worker can be had, and no second.
    batch(fd, memory, "with room for one worker")?;
    match get("vfs.aio.rs.num_procs") {
        Some(1) => Ok(()),
        other => fail!("{other:?} workers where there is room for one"),
    }
}

/// Reads [`BATCH`] pieces at once, and has each completed.
fn batch(fd: i32, memory: &Region, when: &str) -> Result<(), Failure> {
    for index in 0..BATCH {
        let cb = Cb::at(memory, index * 256);
        let buffer = memory.part(BATCH * 256 + index * CHUNK, CHUNK).addr();
        cb.set(aio::request(fd, (index % 16 * CHUNK) as i64, buffer, CHUNK));
        if let Err(error) = aio::read(cb.addr()) {
            fail!("request {index} {when}: {error}");
        }
    }
    for index in 0..BATCH {
        let done = aio::waitcomplete(Some(sys::Timespec::from_ms(30_000)));
        if let Err(error) = done.result {
            fail!("completion {index} {when}: {error}");
        }
    }
    Ok(())
}
