// SPDX-License-Identifier: BSD-2-Clause
//! Is in the way of an unload: from when it makes the file HELD until there is a file RELEASE.
//!
//! `holder request FILE HELD RELEASE` has one finished request that it collects only in the end: an
//! unload in between must be refused. `holder sleep FILE HELD RELEASE` has none, and sleeps in
//! aio_waitcomplete(2) for some seconds: an unload in between must succeed, and hand the call to the
//! built-in, which ends it with EAGAIN. `holder pipe FILE HELD RELEASE` has one that waits for a pipe
//! with `vfs.aio.rs.park`: an unload must be refused, and the request must end as if nothing had been.
//! Exits 1 when its calls did not end as they must, or nobody releases it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::ffi::CStr;
use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINPROGRESS};
use guest::handshake::Handshake;
use guest::mem::Region;
use guest::sys::{self, Timespec};
use guest::sysctl::Setting;
use guest::time::{ms_since, now};
use guest::{Args, Result, println};

guest::program!(run);

/// How long it sleeps.
const SLEEP_MS: u64 = 5000;

fn run(args: Args) -> i32 {
    let mut words = args.plain(&[]);
    let (Some(what), Some(file), Some(unload)) =
        (words.next(), words.next(), Handshake::of(&mut words))
    else {
        guest::eprintln!("usage: holder request|sleep|pipe FILE HELD RELEASE");
        return 2;
    };
    let result = match what.to_bytes() {
        b"request" => hold(file, unload),
        b"pipe" => park(unload),
        _ => wait(file, unload),
    };
    match result {
        Ok(true) => {
            println!("holder: ok");
            0
        }
        Ok(false) => 1,
        Err(error) => {
            println!("holder: FAILED: {error}");
            1
        }
    }
}

/// Reads some bytes of the file, up to the point where the result could be collected.
fn finish_one(file: &CStr) -> Result<(Cb, Region)> {
    let fd = sys::open(file, sys::O_RDONLY, 0)?;
    let memory = Region::map(8192)?;
    let cb = Cb::at(&memory, 0);
    cb.set(aio::request(fd, 0, memory.part(4096, 4096).addr(), 4096));
    aio::read(cb.addr())?;
    aio::suspend(&[cb.addr()], None)?;
    Ok((cb, memory))
}

fn hold(file: &CStr, unload: Handshake) -> Result<bool> {
    let (cb, _memory) = finish_one(file)?;
    unload.pass()?;
    aio::return_(cb.addr()).map(|bytes| bytes > 0)
}

fn park(unload: Handshake) -> Result<bool> {
    let _parks = Setting::new("vfs.aio.rs.park", 1)?;
    let (from, to) = sys::pipe()?;
    let memory = Region::map(8192)?;
    let cb = Cb::at(&memory, 0);
    cb.set(aio::request(from, 0, memory.part(4096, 4096).addr(), 4096));
    aio::read(cb.addr())?;
    unload.pass()?;
    let waits = aio::error(cb.addr()) == Ok(EINPROGRESS.0);
    sys::write(to, b"abc")?;
    aio::suspend(&[cb.addr()], None)?;
    let done = aio::return_(cb.addr());
    let right = waits && done == Ok(3);
    if !right {
        println!("holder: FAILED: waits {waits}, then {done:?}");
    }
    Ok(right)
}

fn wait(file: &CStr, unload: Handshake) -> Result<bool> {
    let (cb, _memory) = finish_one(file)?;
    aio::return_(cb.addr())?;
    unload.announce()?;
    let start = now();
    let done = aio::waitcomplete(Some(Timespec::from_ms(SLEEP_MS)));
    let slept = ms_since(start);
    let right = done.cb == 0 && done.result == Err(EAGAIN) && slept >= SLEEP_MS;
    if !right {
        println!("holder: FAILED: {done:?} after {slept} ms");
    }
    Ok(right)
}
