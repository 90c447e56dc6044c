// SPDX-License-Identifier: BSD-2-Clause
//! What parked requests cost: `parked [--most 50000] [--sockets 500] [--pipes]` parks 1, 1,000 and as
//! many as that on as many sockets, or pipes, and for each measures a submission, a cancel, a cancel of
//! all of a descriptor and a completion of requests beside them, in nanoseconds for one, the kernel's
//! memory for one of them, and the workers there are. It sets the limits it needs, and puts them back.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, AIO_CANCELED, Cb};
use guest::errno::ECANCELED;
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::sysctl::{self, Setting};
use guest::time::now;
use guest::{Args, Result, println, sys};

guest::program!(run);

/// The most sockets.
const SOCKETS: usize = 1000;
/// Requests that are measured.
const SAMPLES: usize = 500;

fn run(args: Args) -> i32 {
    match measure(args) {
        Ok(()) => 0,
        Err(error) => {
            println!("parked: {error}");
            1
        }
    }
}

fn measure(args: Args) -> Result<()> {
    let pipes = args.has(c"--pipes");
    let _parks = if pipes { Some(Setting::new("vfs.aio.rs.park", 1)?) } else { None };
    let most = args.number(c"--most", 50_000) as usize;
    let sockets = (args.number(c"--sockets", 500) as usize).clamp(1, SOCKETS);
    let limit = (most + SAMPLES + 10) as i32;
    let _limits = [
        Setting::new("vfs.aio.max_aio_queue", limit)?,
        Setting::new("vfs.aio.max_aio_queue_per_proc", limit)?,
    ];
    let mut pairs = [(0, 0); SOCKETS];
    for pair in &mut pairs[..sockets] {
        *pair = ends(pipes)?;
    }
    let own = ends(pipes)?;
    let blocks = Region::map((most + SAMPLES) * aio::SIZE)?;
    let buffer = Region::map(4096)?;
    let block = |index: usize| Cb::at(&blocks, index * aio::SIZE);
    let submit = |index: usize, fd: i32| {
        let cb = block(index);
        cb.set(aio::request(fd, 0, buffer.addr(), 1));
        aio::read(cb.addr())
    };
    let mut parked = 0;
    for count in [0, 1, 1000, most] {
        let start = now();
        let before = parked;
        while parked < count {
            submit(parked, pairs[parked % sockets].0)?;
            parked += 1;
        }
        let parking = now() - start;
        let each = parking / (parked - before).max(1) as u64;
        let [submits, cancels] = cancelled(most, own.0, &submit, &block, false)?;
        let [_, together] = cancelled(most, own.0, &submit, &block, true)?;
        let completes = completed(most, own, &submit, &block)?;
        let workers = if pipes { "vfs.aio.rs.num_procs" } else { "kern.ipc.aio.num_procs" };
        let workers = sysctl::get(workers).unwrap_or(0);
        println!(
            "parked: {parked} parked, {each} ns each; beside them: submit {submits} ns, cancel {cancels} ns, \
             by descriptor {together} ns, \
             complete {completes} ns; {workers} workers"
        );
    }
    if sys::fork()? == sys::Fork::Child {
        // Shows the memory while all are parked.
        let words = [
            c"/bin/sh",
            c"-c",
            c"vmstat -m | grep -e Type -e aio_rs; vmstat -z | grep -e ITEM -e AIO",
        ];
        let _ = sys::exec_words(words.into_iter());
        sys::exit(1);
    }
    let _ = sys::wait_for(-1);
    let start = now();
    for pair in &pairs[..sockets] {
        let _ = aio::cancel(pair.0, 0)?;
    }
    println!("parked: cancelled by descriptor, {} ns each", (now() - start) / most as u64);
    for index in 0..most {
        if aio::return_(block(index).addr()) != Err(ECANCELED) {
            println!("parked: request {index} was not cancelled");
        }
    }
    for index in 0..most {
        submit(index, pairs[index % sockets].0)?;
    }
    if sys::fork()? == sys::Fork::Child {
        sys::exit(0);
    }
    println!("parked: exits with {most} parked");
    Ok(())
}

/// Two ends: the first reads what the second writes.
fn ends(pipe: bool) -> Result<(i32, i32)> {
    if pipe { sys::pipe() } else { net::pair(SOCK_STREAM) }
}

type Submit<'a> = &'a dyn Fn(usize, i32) -> Result<()>;

/// Nanoseconds for a submission, and for its cancel: one by one, or `together` by their descriptor.
fn cancelled(
    first: usize,
    fd: i32,
    submit: Submit,
    block: &dyn Fn(usize) -> Cb,
    together: bool,
) -> Result<[u64; 2]> {
    let start = now();
    for index in first..first + SAMPLES {
        submit(index, fd)?;
    }
    let between = now();
    if together && aio::cancel(fd, 0)? != AIO_CANCELED {
        println!("parked: requests that wait are not cancelled");
    }
    for index in (first..first + SAMPLES).rev() {
        if !together && aio::cancel(fd, block(index).addr())? != AIO_CANCELED {
            println!("parked: a request that waits is not cancelled");
        }
    }
    let end = now();
    for index in first..first + SAMPLES {
        let _ = aio::return_(block(index).addr());
    }
    Ok([(between - start) / SAMPLES as u64, (end - between) / SAMPLES as u64])
}

/// Nanoseconds from a write to the result of the read that waited.
fn completed(
    first: usize,
    ends: (i32, i32),
    submit: Submit,
    block: &dyn Fn(usize) -> Cb,
) -> Result<u64> {
    let start = now();
    for _ in 0..SAMPLES {
        submit(first, ends.0)?;
        sys::write(ends.1, b"x")?;
        let at = block(first).addr();
        aio::suspend(&[at], None)?;
        aio::return_(at)?;
    }
    Ok((now() - start) / SAMPLES as u64)
}
