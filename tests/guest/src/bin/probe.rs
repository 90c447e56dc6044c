// SPDX-License-Identifier: BSD-2-Clause
//! Loads a module that tries the kernel's functions (`tests/kmod/aio_rs_probe.c`) and unloads it, with
//! memory, descriptors and signals where it looks for them. In between a child becomes another
//! program and ends, one ends as another user, and the disk goes. What the module finds, the kernel's
//! console says.
//!
//! `probe FILE.ko`
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::mem::{PAGE, Region};
use guest::sys::{self, Ended, Fork};
use guest::{Args, kld, net, println, signal};

guest::program!(run);

/// Where the module looks for memory: a page to write to, one to read, and none.
const MEMORY: usize = 0x2000_0000;
/// What handlers were told; pages nobody has touched; zeroes; a page that allows nothing.
const NOTED: usize = 0x2001_0000;
const UNTOUCHED: usize = 0x2002_0000;
const BUFFER: usize = 0x2003_0000;
const FORBIDDEN: usize = 0x2005_0000;
/// Descriptors: a file to read, to write, as a path, with the right to read at no offset; a socket and
/// its peer; two of datagrams; one whose peer is closed; one that listens; a disk; a pipe's two ends.
const DESCRIPTORS: i32 = 10;
/// The disk's number.
const DISK: &core::ffi::CStr = c"77";
/// Pages the program may lock.
const LOCKED: usize = 8;

const SIGHUP: i32 = 1;
const SIGALRM: i32 = 14;
const SIGTERM: i32 = 15;
const SIGUSR2: i32 = 31;
const SA_RESTART: i32 = 2;
const SIG_IGN: usize = 1;
const RLIMIT_MEMLOCK: i32 = 6;

fn run(args: Args) -> i32 {
    let Some(file) = args.plain(&[]).next() else {
        println!("usage: probe FILE.ko");
        return 2;
    };
    if file == c"end" {
        return 3;
    }
    match prepare().and_then(|()| kld::load(file)) {
        Ok(number) => {
            let between = between();
            match kld::unload(number, false) {
                Ok(()) => i32::from(!between),
                Err(error) => {
                    println!("probe: unload: {error}");
                    1
                }
            }
        }
        Err(error) => {
            println!("probe: {error}");
            1
        }
    }
}

/// What the module sees while it is loaded.
fn between() -> bool {
    let ended = match sys::fork() {
        Ok(Fork::Child) => {
            if let Ok(path) = sys::own_path() {
                let _ = sys::exec_words([path.as_cstr(), c"end"].into_iter());
            }
            sys::exit(4)
        }
        Ok(Fork::Parent(pid)) => sys::wait_for(pid),
        Err(_) => None,
    };
    let other = match sys::fork() {
        Ok(Fork::Child) => sys::exit(if sys::setuid(1001).is_ok() { 3 } else { 4 }),
        Ok(Fork::Parent(pid)) => sys::wait_for(pid),
        Err(_) => None,
    };
    let gone = sys::run_quietly(&[c"/sbin/mdconfig", c"-d", c"-u", DISK, c"-o", c"force"]);
    let three = Some(Ended::Exit(3));
    if ended != three || other != three || gone != Ok(0) {
        println!("probe: children ended with {ended:?} and {other:?}, mdconfig with {gone:?}");
        return false;
    }
    true
}

fn prepare() -> guest::Result<()> {
    memory()?;
    descriptors()?;
    signal::record(SIGUSR2, 0, NOTED)?;
    signal::record(SIGHUP, SA_RESTART, NOTED)?;
    signal::block(signal::Set::of(SIGALRM))?;
    sys::signal(SIGTERM, SIG_IGN, 0)?;
    sys::set_soft_limit(RLIMIT_MEMLOCK, (LOCKED * PAGE) as i64)
}

fn memory() -> guest::Result<()> {
    let both = sys::PROT_READ | sys::PROT_WRITE;
    sys::mmap_over(MEMORY, 2 * PAGE, both)?;
    let memory = Region::shared_at(MEMORY, 2 * PAGE);
    for at in 0..2 * PAGE {
        memory.write(at, &[(at % PAGE) as u8]);
    }
    for (index, (offset, len)) in [(32, 8), (64, 16)].into_iter().enumerate() {
        memory.set_word(1024 + index * 16, (MEMORY + offset) as u64);
        memory.set_word(1024 + index * 16 + 8, len);
    }
    memory.part(PAGE, PAGE).protect(sys::PROT_READ)?;
    sys::mmap_over(NOTED, PAGE, both)?;
    sys::mmap_over(UNTOUCHED, 3 * PAGE, both)?;
    sys::mmap_over(BUFFER, 16 * PAGE, both)?;
    Region::shared_at(BUFFER, 16 * PAGE).fill(0);
    sys::mmap_over(FORBIDDEN, PAGE, 0)
}

fn descriptors() -> guest::Result<()> {
    let name = c"probed";
    let first = sys::open(name, sys::O_RDWR | sys::O_CREAT, 0o644)?;
    sys::write(first, &[1; 100])?;
    let opened = [
        sys::open(name, sys::O_RDONLY, 0)?,
        sys::open(name, sys::O_WRONLY, 0)?,
        sys::open(name, sys::O_PATH, 0)?,
        first,
    ];
    let (socket, peer) = net::pair(net::SOCK_STREAM)?;
    let (datagram, its_peer) = net::pair(net::SOCK_DGRAM)?;
    let (ended, closed) = net::pair(net::SOCK_STREAM)?;
    sys::close(closed)?;
    let (listening, _) = net::listener(net::SOCK_STREAM, 0, 1)?;
    let made = [c"/sbin/mdconfig", c"-a", c"-t", c"malloc", c"-s", c"64k", c"-u", DISK];
    if sys::run_quietly(&made)? != 0 {
        println!("probe: no disk could be made");
        return Err(guest::errno::ENXIO);
    }
    let disk = sys::open(c"/dev/md77", sys::O_RDWR, 0)?;
    let (reading, writing) = sys::pipe()?;
    let sockets = [socket, peer, datagram, its_peer, ended, listening];
    // Where they are may be where another is to be.
    let aside = |index: usize| DESCRIPTORS + 20 + index as i32;
    let all = opened.into_iter().chain(sockets).chain([disk, reading, writing]);
    let count = all.clone().count();
    for (index, fd) in all.enumerate() {
        sys::dup2(fd, aside(index))?;
    }
    for index in 0..count {
        sys::dup2(aside(index), DESCRIPTORS + index as i32)?;
    }
    sys::cap_rights_limit(DESCRIPTORS + 3, sys::CAP_READ)?;
    sys::unlink(name)
}
