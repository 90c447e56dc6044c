// SPDX-License-Identifier: BSD-2-Clause
//! Reads a file with aio_read(2), waits with aio_suspend(2), collects with aio_return(2) and
//! compares each piece with pread(2).
//!
//! `aio_demo FILE [--chunk BYTES] [--need-served]` prints bytes, requests and the engine's counter
//! before and after. It exits 1 on a difference or an error, and with `--need-served` also when
//! the counter did not rise by the number of requests.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::ffi::CStr;
use guest::aio::{self, Cb};
use guest::errno::{EINPROGRESS, EINTR};
use guest::mem::Region;
use guest::out::Text;
use guest::sysctl::{Maybe, served};
use guest::{Args, Errno, sys};

type Failure = Text<200>;

guest::program!(run);

fn run(args: Args) -> i32 {
    let Some(file) = args.plain(&[c"--chunk"]).next() else {
        guest::eprintln!("usage: aio_demo FILE [--chunk BYTES] [--need-served]");
        return 2;
    };
    let before = served();
    let outcome = read_all(file, args.number(c"--chunk", 65536) as usize);
    let after = served();
    let (bytes, requests) = match outcome {
        Ok(counts) => counts,
        Err(why) => {
            guest::println!("aio_demo: FAILED: {}", why.as_str());
            return 1;
        }
    };
    guest::println!(
        "aio_demo: file={} bytes={bytes} requests={requests} served_before={} served_after={}",
        file.to_str().unwrap_or("?"),
        Maybe(before),
        Maybe(after),
    );
    if args.has(c"--need-served") {
        let rise = before.zip(after).map(|(before, after)| after.wrapping_sub(before));
        if rise.is_none_or(|rise| rise < requests) {
            guest::println!(
                "aio_demo: FAILED: the engine served {} of {requests} requests",
                Maybe(rise)
            );
            return 1;
        }
    }
    guest::println!("aio_demo: ok");
    0
}

/// Reads and compares; returns bytes and requests.
fn read_all(file: &CStr, chunk: usize) -> Result<(u64, u64), Failure> {
    let failed = |what: &str, at: i64, error: Errno| {
        Failure::of(format_args!("{what} at {at} of {}: {error}", file.to_str().unwrap_or("?")))
    };
    if chunk == 0 {
        return Err(Failure::of(format_args!("a chunk of 0 bytes")));
    }
    let fd = sys::open(file, sys::O_RDONLY, 0).map_err(|error| failed("open", 0, error))?;
    let size = sys::fstat(fd).map_err(|error| failed("fstat", 0, error))?.size;
    let memory = Region::map(4096 + 2 * chunk).map_err(|error| failed("mmap", 0, error))?;
    let cb = Cb::at(&memory, 0);
    let got = memory.part(4096, chunk);
    let wanted = memory.part(4096 + chunk, chunk);
    let (mut offset, mut requests) = (0i64, 0);
    while offset < size {
        got.fill(0xa5);
        cb.set(aio::request(fd, offset, got.addr(), chunk));
        aio::read(cb.addr()).map_err(|error| failed("aio_read", offset, error))?;
        requests += 1;
        loop {
            match aio::suspend(&[cb.addr()], None) {
                Err(EINTR) => {}
                other => break other.map_err(|error| failed("aio_suspend", offset, error))?,
            }
        }
        let state = aio::error(cb.addr()).map_err(|error| failed("aio_error", offset, error))?;
        if state == EINPROGRESS.0 {
            return Err(failed("aio_error after aio_suspend", offset, EINPROGRESS));
        }
        let count = aio::return_(cb.addr()).map_err(|error| failed("aio_return", offset, error))?;
        let expected = sys::pread_at(fd, wanted.addr(), chunk, offset)
            .map_err(|error| failed("pread", offset, error))?;
        if count != expected as i64 {
            return Err(Failure::of(format_args!(
                "{count} bytes at {offset}, pread has {expected}"
            )));
        }
        if let Some(at) = got.part(0, expected).first_difference(&wanted.part(0, expected)) {
            return Err(Failure::of(format_args!("byte {} differs", offset + at as i64)));
        }
        if count == 0 {
            break;
        }
        offset += count;
    }
    let _ = sys::close(fd);
    Ok((offset as u64, requests))
}
