// SPDX-License-Identifier: BSD-2-Clause
//! Is in the way of an unload, for as long as asked.
//!
//! `holder request FILE MS` has one finished request that it collects only in the end: an unload
//! in between must be refused. `holder sleep FILE MS` has none, and sleeps in aio_waitcomplete(2):
//! an unload in between must succeed, and hand the call to the built-in, which ends it with EAGAIN.
//! `holder pipe FILE MS` has one that waits for a pipe with `vfs.aio.rs.park`: an unload must be
//! refused, and the request must end as if nothing had been.
//! Exits 1 when its calls did not end as they must.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::ffi::CStr;
use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINPROGRESS};
use guest::mem::Region;
use guest::sys::{self, Timespec};
use guest::sysctl::Setting;
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Result, println};

guest::program!(run);

fn run(args: Args) -> i32 {
    let mut words = args.plain(&[]);
    let (Some(what), Some(file), Some(ms)) = (words.next(), words.next(), words.next()) else {
        guest::eprintln!("usage: holder request|sleep|pipe FILE MS");
        return 2;
    };
    let Some(ms) = ms.to_str().ok().and_then(|text| text.parse().ok()) else {
        guest::eprintln!("holder: MS is a number");
        return 2;
    };
    let result = match what.to_bytes() {
        b"request" => hold(file, ms),
        b"pipe" => park(ms),
        _ => wait(file, ms),
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

fn hold(file: &CStr, ms: u64) -> Result<bool> {
    let (cb, _memory) = finish_one(file)?;
    sleep_ms(ms);
    aio::return_(cb.addr()).map(|bytes| bytes > 0)
}

fn park(ms: u64) -> Result<bool> {
    let _parks = Setting::new("vfs.aio.rs.park", 1)?;
    let (from, to) = sys::pipe()?;
    let memory = Region::map(8192)?;
    let cb = Cb::at(&memory, 0);
    cb.set(aio::request(from, 0, memory.part(4096, 4096).addr(), 4096));
    aio::read(cb.addr())?;
    sleep_ms(ms);
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

fn wait(file: &CStr, ms: u64) -> Result<bool> {
    let (cb, _memory) = finish_one(file)?;
    aio::return_(cb.addr())?;
    let start = now();
    let done = aio::waitcomplete(Some(Timespec::from_ms(ms)));
    let slept = ms_since(start);
    let right = done.cb == 0 && done.result == Err(EAGAIN) && slept >= ms;
    if !right {
        println!("holder: FAILED: {done:?} after {slept} ms");
    }
    Ok(right)
}
