// SPDX-License-Identifier: BSD-2-Clause
//! One socket, requests of both engines: `mixed [--rounds 300]`.
//!
//! Run it before the module is loaded, and load the module once it has said so: a process that has
//! used AIO by then stays with the built-in, and a new one becomes the engine's. Both read from the
//! same direction of the same socket, and write to it, all at once, and end in turn; every byte is
//! to come once.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINVAL};
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::rng::Rng;
use guest::sys::{self, Ended, Fork};
use guest::sysctl::served;
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Result, println};

guest::program!(run);

const AT_ONCE: usize = 16;

/// Reads until the end, several requests at a time; how many bytes came.
fn reader(fd: i32, seed: u64) -> Result<u64> {
    let memory = Region::map(AT_ONCE * 4096)?;
    let mut rng = Rng::new(seed);
    let block = |slot: usize| Cb::at(&memory, slot * 4096);
    let begin = |slot: usize, len: usize| {
        let cb = block(slot);
        cb.set(aio::request(fd, 0, memory.at(slot * 4096 + 512), len));
        aio::read(cb.addr())
    };
    let (mut flying, mut total, mut over) = (0, 0, false);
    for slot in 0..AT_ONCE {
        begin(slot, 1 + rng.below(3000) as usize)?;
        flying += 1;
    }
    while flying > 0 {
        let done = aio::waitcomplete(None);
        let slot = (done.cb.wrapping_sub(memory.addr())) / 4096;
        match done.result {
            Ok(0) => over = true,
            Ok(count) => total += count as u64,
            Err(guest::errno::ECANCELED) => {}
            Err(error) => return Err(error),
        }
        flying -= 1;
        if !over {
            begin(slot, 1 + rng.below(3000) as usize)?;
            flying += 1;
            if rng.one_in(10) {
                let victim = rng.below(AT_ONCE as u64) as usize;
                aio::cancel(fd, block(victim).addr())?;
            }
        }
    }
    Ok(total)
}

/// Makes this process the built-in's, or the engine's: whichever serves now.
fn use_aio() -> Result<()> {
    let memory = Region::map(8192)?;
    let (one, two) = net::pair(SOCK_STREAM)?;
    sys::write(two, b"x")?;
    let cb = Cb::at(&memory, 0);
    cb.set(aio::request(one, 0, memory.at(4096), 1));
    aio::read(cb.addr())?;
    let done = aio::waitcomplete(None);
    sys::close(one)?;
    sys::close(two)?;
    done.result.map(|_| ())
}

/// Reads rounds' sockets from their numbers, and tells what came.
fn work(rounds: u64, sockets: &[(i32, i32)], tell: i32) -> Result<()> {
    for round in 0..rounds {
        let total = reader(sockets[round as usize].0, round)?;
        sys::write(tell, &total.to_le_bytes())?;
    }
    Ok(())
}

fn run(args: Args) -> i32 {
    match both(args) {
        Ok(()) => 0,
        Err(error) => {
            println!("mixed: {error}");
            1
        }
    }
}

const ROUNDS: usize = 400;

fn both(args: Args) -> Result<()> {
    let rounds = args.number(c"--rounds", 300).min(ROUNDS as u64);
    let mut sockets = [(0, 0); ROUNDS];
    for pair in &mut sockets[..rounds as usize] {
        *pair = net::pair(SOCK_STREAM)?;
    }
    let (from_old, old_tells) = sys::pipe()?;
    let (from_new, new_tells) = sys::pipe()?;
    let (go, says_go) = sys::pipe()?;
    let old = match sys::fork()? {
        Fork::Child => {
            let worked = use_aio().and_then(|()| {
                sys::write(old_tells, &[0; 8])?;
                sys::read(go, &mut [0])?;
                work(rounds, &sockets, old_tells)
            });
            sys::exit(i32::from(worked.is_err()))
        }
        Fork::Parent(pid) => pid,
    };
    let mut word = [0; 8];
    sys::read(from_old, &mut word)?;
    if served().is_some() {
        println!("mixed: the module is loaded already");
        return Err(EINVAL);
    }
    println!("mixed: load the module now");
    let start = now();
    while served().is_none() {
        if ms_since(start) > 100_000 {
            return Err(EAGAIN);
        }
        sleep_ms(20);
    }
    let before = served();
    let new = match sys::fork()? {
        Fork::Child => {
            let worked = use_aio().and_then(|()| work(rounds, &sockets, new_tells));
            sys::exit(i32::from(worked.is_err()))
        }
        Fork::Parent(pid) => pid,
    };
    sys::write(says_go, b"x")?;
    let (mut total_old, mut total_new) = (0, 0);
    let bytes = [7u8; 5000];
    let mut rng = Rng::new(9);
    for round in 0..rounds {
        let to = sockets[round as usize].1;
        let mut sent = 0;
        for _ in 0..1 + rng.below(60) {
            let len = 1 + rng.below(bytes.len() as u64) as usize;
            sent += sys::write(to, &bytes[..len])? as u64;
        }
        net::shutdown(to, net::SHUT_WR)?;
        let mut came = [0; 2];
        for (total, from) in came.iter_mut().zip([from_old, from_new]) {
            sys::read(from, &mut word)?;
            *total = u64::from_le_bytes(word);
        }
        total_old += came[0];
        total_new += came[1];
        if came[0] + came[1] != sent {
            println!("mixed: round {round}: {sent} bytes sent, {came:?} came");
            return Err(EINVAL);
        }
    }
    let ended = [sys::wait_for(old), sys::wait_for(new)];
    println!(
        "mixed: {rounds} rounds, {total_old} bytes to the built-in, {total_new} to the engine, which \
         served {}; {ended:?}",
        served().zip(before).map_or(0, |(after, before)| after - before)
    );
    if ended.iter().all(|&ended| ended == Some(Ended::Exit(0))) { Ok(()) } else { Err(EINVAL) }
}
