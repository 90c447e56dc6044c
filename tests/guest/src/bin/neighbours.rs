// SPDX-License-Identifier: BSD-2-Clause
//! Two engines at one socket: a process of the built-in's cancels its last request while one of ours
//! waits for the same half of the socket, which must go on waiting, and be told when it is ready.
//!
//! `neighbours HELD RELEASE` is started before the module is loaded, makes a request, so that it is
//! the built-in's, makes the file HELD, and waits for a file RELEASE, which says that the module is
//! loaded. Its children, which begin without an engine, are then served by the module. Exits 1 when
//! something was not as it must be.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, AIO_CANCELED, Cb};
use guest::errno::EINVAL;
use guest::handshake::Handshake;
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::sys::{self, Ended, Fork, Timespec};
use guest::sysctl::served;
use guest::{Args, Result, println};

guest::program!(run);

/// How long a child waits for its request.
const PATIENCE_MS: u64 = 10_000;

fn run(args: Args) -> i32 {
    let Some(load) = Handshake::of(&mut args.plain(&[])) else {
        guest::eprintln!("usage: neighbours HELD RELEASE");
        return 2;
    };
    match all(load) {
        Ok(0) => {
            println!("neighbours: ok");
            0
        }
        Ok(bad) => {
            println!("neighbours: {bad} FAILED");
            1
        }
        Err(error) => {
            println!("neighbours: FAILED: {error}");
            1
        }
    }
}

fn all(load: Handshake) -> Result<u32> {
    if served().is_some() {
        println!("neighbours: the module is loaded already");
        return Ok(1);
    }
    let memory = Region::map(3 * 4096)?;
    let (one, two) = net::pair(SOCK_STREAM)?;
    let own = Request::new(&memory);
    // From here on this process is the built-in's.
    own.come_and_go(one, false)?;
    load.pass()?;
    let Some(before) = served() else {
        println!("neighbours: the module is not loaded");
        return Ok(1);
    };
    let mut bad = 0;
    let mut check = |what: &str, good: bool| {
        println!("neighbours: {what}: {}", if good { "ok" } else { "FAILED" });
        bad += u32::from(!good);
    };

    let reader = Child::start(&memory, one, false)?;
    own.come_and_go(one, false)?;
    sys::write(two, b"x")?;
    check("a read is told of data", reader.ended_well());

    fill_up(one)?;
    let writer = Child::start(&memory, one, true)?;
    own.come_and_go(one, true)?;
    sys::set_nonblocking(two)?;
    while sys::read(two, &mut [0; 4096]).is_ok() {}
    check("a write is told of room", writer.ended_well());

    let fd = net::socket(net::AF_INET, SOCK_STREAM, 0)?;
    net::bind(fd, &net::Inet::loopback(0))?;
    let waits = Child::start(&memory, fd, false)?;
    own.come_and_go(fd, false)?;
    check("listen(2) is refused while a read waits", net::listen(fd, 5) == Err(EINVAL));
    sys::kill(waits.pid, sys::SIGKILL)?;
    let _ = sys::wait_for(waits.pid);
    check("and is not when it is gone", net::listen(fd, 5) == Ok(()));

    let rise = served().map_or(0, |after| after.wrapping_sub(before));
    check("the module served the children", rise >= 2);
    Ok(bad)
}

/// Writes until there is no room.
fn fill_up(fd: i32) -> Result<()> {
    sys::set_nonblocking(fd)?;
    while sys::write(fd, &[0; 512]).is_ok() {}
    // Blocking again.
    sys::call(92, [fd as usize, 4, 0, 0, 0, 0]).map(|_| ())
}

/// A control block with a byte to read or write.
struct Request {
    cb: Cb,
    buffer: Region,
}

impl Request {
    fn new(memory: &Region) -> Request {
        Request { cb: Cb::at(memory, 0), buffer: memory.part(4096, 1) }
    }

    fn submit(&self, fd: i32, writes: bool) -> Result<()> {
        self.cb.set(aio::request(fd, 0, self.buffer.addr(), 1));
        if writes { aio::write(self.cb.addr()) } else { aio::read(self.cb.addr()) }
    }

    /// Waits for the half, and is cancelled.
    fn come_and_go(&self, fd: i32, writes: bool) -> Result<()> {
        self.submit(fd, writes)?;
        let answer = aio::cancel(fd, self.cb.addr())?;
        let _ = aio::return_(self.cb.addr());
        if answer == AIO_CANCELED { Ok(()) } else { Err(EINVAL) }
    }
}

/// A process with a request that waits.
struct Child {
    pid: i32,
}

impl Child {
    /// Returns when the child's request waits.
    fn start(memory: &Region, fd: i32, writes: bool) -> Result<Child> {
        let (ready, tell) = sys::pipe()?;
        let pid = match sys::fork()? {
            Fork::Child => {
                let request = Request::new(memory);
                let waited = request.submit(fd, writes).and_then(|()| {
                    sys::write(tell, b"x")?;
                    aio::suspend(&[request.cb.addr()], Some(Timespec::from_ms(PATIENCE_MS)))?;
                    aio::return_(request.cb.addr())
                });
                sys::exit(i32::from(waited != Ok(1)))
            }
            Fork::Parent(pid) => pid,
        };
        sys::close(tell)?;
        let told = sys::read(ready, &mut [0])?;
        sys::close(ready)?;
        if told == 1 { Ok(Child { pid }) } else { Err(EINVAL) }
    }

    fn ended_well(self) -> bool {
        sys::wait_for(self.pid) == Some(Ended::Exit(0))
    }
}
