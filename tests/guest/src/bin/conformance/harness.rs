// SPDX-License-Identifier: BSD-2-Clause
//! Runs cases in processes of their own, and gives them memory, files, requests and a way to hold
//! requests back so that their state does not depend on timing.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use guest::aio::{self, Cb};
use guest::errno::{EINPROGRESS, EINTR, EPERM, ETIMEDOUT};
use guest::mem::{PAGE, Region};
use guest::out::Text;
use guest::path::Path;
use guest::rng::mix;
use guest::seen::{self, Seen};
use guest::sys::{self, Ended, Fork, Iovec, Timespec};
use guest::sysctl::{self, Maybe, Setting, served};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Errno, println};

/// How long a case may take. Debug kernels on emulated processors are slow.
const LIMIT_MS: u64 = 120_000;
/// How long to wait for something that must happen.
const PATIENCE_MS: u64 = 60_000;

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    /// What it promises.
    pub name: &'static str,
    /// Checks it.
    pub check: fn(&Test) -> Outcome,
    /// What the kernel's own engine does instead.
    pub builtin: Builtin,
}

/// What the kernel's own engine makes of a case.
#[derive(Clone, Copy)]
pub enum Builtin {
    /// It keeps the promise too.
    Same,
    /// It does not: ours is better on purpose.
    Differs(&'static str),
    /// It does not, and the machine may not survive it: the case is for ours only.
    Breaks(&'static str),
}

/// Makes a list of cases of functions; a case's name is its group's and the function's. One that
/// the built-in does not pass says `differs "what it does"` or `breaks "what happens"`.
#[macro_export]
macro_rules! cases {
    ($group:literal: $($name:ident $($kind:ident $what:literal)?),* $(,)?) => {
        /// The cases of this file.
        pub const CASES: &[$crate::harness::Case] = &[$(
            $crate::harness::Case {
                name: concat!($group, "_", stringify!($name)),
                check: $name,
                builtin: $crate::cases!(@builtin $($kind $what)?),
            }
        ),*];
    };
    (@builtin) => { $crate::harness::Builtin::Same };
    (@builtin differs $what:literal) => { $crate::harness::Builtin::Differs($what) };
    (@builtin breaks $what:literal) => { $crate::harness::Builtin::Breaks($what) };
}

/// What a case comes to.
pub type Outcome = Result<(), Stop>;

/// Why a case did not come to a good end.
pub enum Stop {
    /// The promise is broken.
    Fail(Text<300>),
    /// It cannot be checked here.
    Skip(Text<300>),
}

/// Fails the case unless something holds.
#[macro_export]
macro_rules! check {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::harness::Stop::Fail(::guest::out::Text::of(format_args!($($why)+))));
        }
    };
}

/// Fails the case unless two values are the same.
pub fn same<T: PartialEq + fmt::Debug>(got: T, wanted: T, what: &str) -> Outcome {
    check!(got == wanted, "{what}: got {got:?}, wanted {wanted:?}");
    Ok(())
}

/// Fails the case.
pub fn fail<T>(args: fmt::Arguments<'_>) -> Result<T, Stop> {
    Err(Stop::Fail(Text::of(args)))
}

/// Leaves the case out.
pub fn skip<T>(args: fmt::Arguments<'_>) -> Result<T, Stop> {
    Err(Stop::Skip(Text::of(args)))
}

/// Turns a failed system call into a failed case that says what was tried.
pub trait Must<T> {
    /// The value, or the failed case.
    fn must(self, what: &str) -> Result<T, Stop>;
}

impl<T> Must<T> for guest::Result<T> {
    fn must(self, what: &str) -> Result<T, Stop> {
        self.or_else(|error| fail(format_args!("{what}: {error}")))
    }
}

/// The four ways to submit a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// aio_read
    Read,
    /// aio_write
    Write,
    /// aio_readv
    Readv,
    /// aio_writev
    Writev,
}

/// All of them.
pub const OPS: [Op; 4] = [Op::Read, Op::Write, Op::Readv, Op::Writev];

impl Op {
    /// Submits the block at an address.
    ///
    /// # Errors
    /// Those of the call.
    pub fn submit(self, cb: usize) -> guest::Result<()> {
        let result = match self {
            Self::Read => aio::read(cb),
            Self::Write => aio::write(cb),
            Self::Readv => aio::readv(cb),
            Self::Writev => aio::writev(cb),
        };
        if result.is_ok() {
            accepted();
        }
        result
    }

    /// What it is called in a list.
    pub fn opcode(self) -> i32 {
        match self {
            Self::Read => aio::LIO_READ,
            Self::Write => aio::LIO_WRITE,
            Self::Readv => aio::LIO_READV,
            Self::Writev => aio::LIO_WRITEV,
        }
    }

    /// Whether it takes a list of pieces.
    pub fn vectored(self) -> bool {
        matches!(self, Self::Readv | Self::Writev)
    }

    /// Whether it writes to the file.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Writev)
    }
}

/// Address of the page that the runner and its children share: the number of accepted requests,
/// then the outcome, and at [`SEEN`] what calls answered.
static SHARED: AtomicUsize = AtomicUsize::new(0);

/// Where the page has what calls answered.
const SEEN: usize = 1024;

/// Counts a request that was accepted.
pub fn accepted() {
    if let Some(shared) = shared() {
        shared.atomic(0).fetch_add(1, Ordering::Relaxed);
    }
}

fn shared() -> Option<Region> {
    match SHARED.load(Ordering::Relaxed) {
        0 => None,
        addr => Some(Region::shared_at(addr, PAGE)),
    }
}

/// The memory of a case.
const ARENA: usize = 16 << 20;

/// What a case has to work with.
pub struct Test {
    memory: Region,
    used: AtomicUsize,
}

impl Test {
    /// Memory from a page's start; it is never given twice.
    pub fn buffer(&self, len: usize) -> Region {
        let at = self.used.fetch_add(len.next_multiple_of(PAGE), Ordering::Relaxed);
        self.memory.part(at, len)
    }

    /// A control block of zeroes, on a page of its own.
    pub fn block(&self) -> Cb {
        Cb::at(&self.buffer(aio::SIZE), 0)
    }

    /// A control block with the kernel's words set to what no call leaves there.
    pub fn request(&self, op: Op, fd: i32, offset: i64, buffer: &Region) -> Cb {
        let cb = self.block();
        self.prepare(cb, op, fd, offset, buffer);
        cb
    }

    /// Fills in a block for one buffer; a vectored request gets it as its only piece.
    pub fn prepare(&self, cb: Cb, op: Op, fd: i32, offset: i64, buffer: &Region) {
        let mut block = if op.vectored() {
            let pieces = self.pieces(&[*buffer]);
            aio::request(fd, offset, pieces.addr(), 1)
        } else {
            aio::request(fd, offset, buffer.addr(), buffer.len())
        };
        (block.status, block.error, block.kernelinfo) = (77, 78, 79);
        cb.set(block);
    }

    /// A list of pieces.
    pub fn pieces(&self, buffers: &[Region]) -> Region {
        let list = self.buffer(buffers.len().max(1) * size_of::<Iovec>());
        for (index, buffer) in buffers.iter().enumerate() {
            list.put(index * size_of::<Iovec>(), Iovec { base: buffer.addr(), len: buffer.len() });
        }
        list
    }

    /// A vectored request.
    pub fn vectored(&self, fd: i32, offset: i64, buffers: &[Region]) -> Cb {
        let cb = self.block();
        cb.set(aio::request(fd, offset, self.pieces(buffers).addr(), buffers.len()));
        cb
    }

    /// A new file of patterned bytes, open for reading and writing.
    pub fn file(&self, name: &str, len: usize) -> Result<i32, Stop> {
        let path = Path::new(name.as_bytes());
        let flags = sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC;
        let fd = sys::open(path.as_cstr(), flags, 0o644).must("create a file")?;
        let mut bytes = [0u8; 4096];
        let mut offset = 0;
        while offset < len {
            let count = (len - offset).min(bytes.len());
            for (index, byte) in bytes[..count].iter_mut().enumerate() {
                *byte = pattern(offset + index);
            }
            let written = sys::pwrite(fd, &bytes[..count], offset as i64).must("write a file")?;
            check!(written == count, "short write of a test file");
            offset += count;
        }
        Ok(fd)
    }

    /// A file opened again, another way.
    pub fn open(&self, name: &str, flags: i32) -> Result<i32, Stop> {
        sys::open(Path::new(name.as_bytes()).as_cstr(), flags, 0o644).must("open a file")
    }

    /// Submits a request that must be accepted.
    pub fn submit(&self, op: Op, cb: Cb) -> Outcome {
        op.submit(cb.addr()).must("submit")
    }

    /// Waits until a request is done; its state as aio_error tells it.
    pub fn done(&self, cb: Cb) -> Result<i32, Stop> {
        let start = now();
        loop {
            let state = aio::error(cb.addr()).must("aio_error")?;
            if state != EINPROGRESS.0 {
                return Ok(state);
            }
            check!(ms_since(start) < PATIENCE_MS, "the request is not done after a minute");
            match aio::suspend(&[cb.addr()], Some(Timespec::from_ms(1000))) {
                Ok(()) | Err(EINTR | guest::errno::EAGAIN) => {}
                Err(error) => return fail(format_args!("aio_suspend: {error}")),
            }
        }
    }

    /// Waits until a request is done and collects it.
    pub fn collect(&self, cb: Cb) -> Result<guest::Result<i64>, Stop> {
        self.done(cb)?;
        Ok(aio::return_(cb.addr()))
    }

    /// Submits, waits and collects; the request must be accepted.
    pub fn perform(&self, op: Op, cb: Cb) -> Result<guest::Result<i64>, Stop> {
        self.submit(op, cb)?;
        self.collect(cb)
    }

    /// Makes the process one that has used AIO.
    pub fn use_aio(&self) -> Outcome {
        let fd = self.file("used", 16)?;
        let cb = self.request(Op::Read, fd, 0, &self.buffer(16));
        same(self.perform(Op::Read, cb)?, Ok(16), "a first read")?;
        sys::close(fd).must("close")
    }

    /// Sets a sysctl until the end of the case.
    pub fn setting(&self, name: &'static str, value: i32) -> Result<Setting, Stop> {
        match Setting::new(name, value) {
            Err(EPERM) => skip(format_args!("not root, cannot set {name}")),
            other => other.must(name),
        }
    }

    /// Holds requests back: none of this process starts until [`Hold::release`].
    pub fn hold(&self) -> Result<Hold<'_>, Stop> {
        let fd = self.file("held", 16)?;
        let setting = self.setting("vfs.aio.max_aio_per_proc", 0)?;
        Ok(Hold { test: self, setting, fd })
    }

    /// A request that runs, and goes on running until its pipe is read: a write of more than the
    /// pipe holds. Only with enable_unsafe, as pipes are not for AIO otherwise.
    pub fn running(&self) -> Result<Running, Stop> {
        let unsafe_files = self.setting("vfs.aio.enable_unsafe", 1)?;
        let (from, to) = sys::pipe().must("pipe")?;
        let cb = self.request(Op::Write, to, 0, &self.buffer(Running::BYTES));
        self.submit(Op::Write, cb)?;
        check!(sys::poll_in(from, 30_000) == Ok(true), "the write to a pipe does not start");
        Ok(Running { cb, from, to, _unsafe_files: unsafe_files })
    }

    /// What the file system under the case is called.
    pub fn fs(&self) -> Text<16> {
        let found = sys::open(c".", sys::O_RDONLY, 0).and_then(|fd| {
            let name = sys::fs_type(fd);
            let _ = sys::close(fd);
            name
        });
        found.unwrap_or_default()
    }

    /// Runs a function in a child; it must return 0 in time. `what` says what else it returned.
    pub fn in_child(&self, what: &str, run: impl FnOnce(&Self) -> i32) -> Outcome {
        let pid = self.child(run)?;
        self.child_ended(pid, what, Ended::Exit(0))
    }

    /// Starts a function in a child.
    pub fn child(&self, run: impl FnOnce(&Self) -> i32) -> Result<i32, Stop> {
        match sys::fork().must("fork")? {
            Fork::Child => sys::exit(run(self)),
            Fork::Parent(pid) => Ok(pid),
        }
    }

    /// Waits for a child, and checks how it ended.
    pub fn child_ended(&self, pid: i32, what: &str, wanted: Ended) -> Outcome {
        let start = now();
        loop {
            match sys::wait(pid, sys::WNOHANG) {
                Ok(Some((_, ended))) => return same(ended, wanted, what),
                Ok(None) | Err(EINTR) => {}
                Err(error) => return fail(format_args!("wait for {what}: {error}")),
            }
            if ms_since(start) > PATIENCE_MS {
                let _ = sys::kill(pid, sys::SIGKILL);
                return fail(format_args!("{what}: still there after a minute: {ETIMEDOUT}"));
            }
            sleep_ms(2);
        }
    }
}

/// Requests are held back; see [`Test::hold`].
pub struct Hold<'a> {
    test: &'a Test,
    setting: Setting,
    fd: i32,
}

impl Hold<'_> {
    /// Lets requests start. The limit is looked at when a request comes, so one is made.
    pub fn release(self) -> Outcome {
        let Self { test, setting, fd } = self;
        drop(setting);
        let cb = test.request(Op::Read, fd, 0, &test.buffer(16));
        same(test.perform(Op::Read, cb)?, Ok(16), "the request that sets the others going")?;
        sys::close(fd).must("close")
    }
}

/// A request that runs; see [`Test::running`].
pub struct Running {
    /// The request.
    pub cb: Cb,
    /// The pipe's reading end.
    pub from: i32,
    /// The pipe's writing end, which the request was made on.
    pub to: i32,
    _unsafe_files: Setting,
}

impl Running {
    /// How much it writes.
    pub const BYTES: usize = 1 << 20;

    /// Reads the pipe empty, so that the request can end.
    pub fn let_go(&self) -> Outcome {
        let mut left = Self::BYTES;
        let mut bytes = [0u8; 4096];
        while left > 0 {
            let count = sys::read(self.from, &mut bytes).must("read the pipe")?;
            check!(count > 0, "the pipe ended {left} bytes early");
            left -= count;
        }
        Ok(())
    }
}

/// Fails the case unless the time since `start` lies between two numbers of milliseconds; clocks
/// may differ by a tick or two.
pub fn check_within(start: u64, least: u64, most: u64) -> Outcome {
    let took = ms_since(start);
    check!(took + 2 >= least, "it took {took} ms, less than {least}");
    check!(took <= most, "it took {took} ms, more than {most}");
    Ok(())
}

/// The byte of every test file at an offset.
pub fn pattern(offset: usize) -> u8 {
    mix(offset as u64 / 8).to_le_bytes()[offset % 8]
}

/// Fails the case unless a buffer holds the pattern of a file from an offset on.
pub fn holds_pattern(buffer: &Region, len: usize, offset: usize) -> Outcome {
    let mut bytes = [0u8; 512];
    for start in (0..len).step_by(512) {
        let count = (len - start).min(512);
        buffer.read(start, &mut bytes[..count]);
        for (index, &byte) in bytes[..count].iter().enumerate() {
            let at = offset + start + index;
            check!(byte == pattern(at), "byte {at} is {byte:#x}, wanted {:#x}", pattern(at));
        }
    }
    Ok(())
}

/// Sysctls that cases set; a case that is killed does not put them back itself.
const SETTINGS: [&str; 13] = [
    "vfs.aio.aiod_lifetime",
    "vfs.aio.rs.park",
    "vfs.aio.max_aio_procs",
    "vfs.aio.target_aio_procs",
    "vfs.aio.rs.lio_empty_kevent",
    "security.bsd.unprivileged_mlock",
    "security.mac.aio_rs.uid",
    "vfs.aio.rs.inline",
    "vfs.aio.enable_unsafe",
    "vfs.aio.max_aio_per_proc",
    "vfs.aio.max_aio_queue",
    "vfs.aio.max_aio_queue_per_proc",
    "vfs.aio.unsafe_warningcnt",
];

/// Runs the cases and counts.
struct Runner {
    shared: Region,
    settings: [Option<u64>; SETTINGS.len()],
    start: Path,
    passed: u32,
    failed: u32,
    skipped: u32,
    differ: u32,
    /// Whether to run what the machine may not survive.
    breaks: bool,
}

/// What a program of cases does: prints their names (`--list`), or runs those whose name has one of
/// its words in it, or all. Returns the exit status.
pub fn main(program: &str, args: Args, cases: impl Iterator<Item = Case>) -> i32 {
    if args.has(c"--list") {
        cases.for_each(|case| println!("{}", case.name));
        return 0;
    }
    let mut runner = match Runner::new(args.has(c"--breaks")) {
        Ok(runner) => runner,
        Err(error) => {
            println!("{program}: cannot start: {error}");
            return 2;
        }
    };
    let wanted = |case: &Case| {
        let mut words = args.plain(&[]).filter_map(|word| word.to_str().ok()).peekable();
        words.peek().is_none() || words.any(|word| case.name.contains(word))
    };
    for case in cases.filter(wanted) {
        runner.run(&case);
    }
    runner.finish()
}

impl Runner {
    /// Makes the shared page; `breaks` is whether to run what the machine may not survive.
    ///
    /// # Errors
    /// Those of mmap(2).
    fn new(breaks: bool) -> guest::Result<Self> {
        let shared = Region::map_shared(PAGE)?;
        SHARED.store(shared.addr(), Ordering::Relaxed);
        seen::watch(&shared.part(SEEN, seen::BYTES));
        Ok(Self {
            shared,
            settings: SETTINGS.map(sysctl::get),
            start: Path::of(format_args!("conformance-{}", sys::getpid())),
            passed: 0,
            failed: 0,
            skipped: 0,
            differ: 0,
            breaks,
        })
    }

    /// Runs a case and prints its line.
    fn run(&mut self, case: &Case) {
        self.shared.fill(0);
        let mut dir = self.start;
        let before = served();
        let start = now();
        let outcome = match (case.builtin, before) {
            (Builtin::Breaks(what), None) if !self.breaks => {
                skip(format_args!("not for the built-in, where {what}"))
            }
            _ => match sys::mkdir(dir.as_cstr(), 0o777) {
                Ok(()) => self.fork(case, &dir),
                Err(error) => fail(format_args!("mkdir: {error}")),
            },
        };
        let _ = sys::remove_tree(&mut dir);
        for (name, value) in SETTINGS.iter().zip(self.settings) {
            if let Some(value) = value
                && sysctl::get(name) != Some(value)
            {
                let _ = sysctl::set(name, value as i32);
            }
        }
        let (word, why) = match outcome {
            Ok(()) => {
                self.passed += 1;
                ("ok", Text::new())
            }
            Err(Stop::Fail(why)) => match (case.builtin, before) {
                (Builtin::Differs(what), None) => {
                    self.differ += 1;
                    ("differs", Text::of(format_args!("{what}: {}", why.as_str())))
                }
                _ => {
                    self.failed += 1;
                    ("FAIL", why)
                }
            },
            Err(Stop::Skip(why)) => {
                self.skipped += 1;
                ("skip", why)
            }
        };
        let rise = before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
        println!(
            "{word} {}{}{} served={} accepted={} ms={}{}",
            case.name,
            if why.as_bytes().is_empty() { "" } else { ": " },
            why.as_str(),
            Maybe(rise),
            self.shared.word(0),
            ms_since(start),
            Seen,
        );
    }

    fn fork(&self, case: &Case, dir: &Path) -> Outcome {
        let pid = match sys::fork().must("fork")? {
            Fork::Child => {
                let _ = sys::setpgid(0, 0);
                let outcome = sys::chdir(dir.as_cstr()).must("chdir").and_then(|()| {
                    let memory = Region::map(ARENA).must("mmap")?;
                    (case.check)(&Test { memory, used: AtomicUsize::new(0) })
                });
                self.leave(outcome)
            }
            Fork::Parent(pid) => pid,
        };
        let start = now();
        let mut late = false;
        let ended = loop {
            match sys::wait(pid, sys::WNOHANG) {
                Ok(Some((_, ended))) => break ended,
                Ok(None) | Err(EINTR) => {}
                Err(error) => return fail(format_args!("wait: {error}")),
            }
            if !late && ms_since(start) > LIMIT_MS {
                late = true;
                let _ = sys::kill(-pid, sys::SIGKILL);
            }
            if ms_since(start) > 2 * LIMIT_MS {
                return fail(format_args!("time-out, and the process outlives SIGKILL"));
            }
            sleep_ms(2);
        };
        // What the case left running.
        let _ = sys::kill(-pid, sys::SIGKILL);
        if late {
            return fail(format_args!("time-out after {} s", LIMIT_MS / 1000));
        }
        match ended {
            Ended::Exit(0) => Ok(()),
            Ended::Exit(1) => Err(Stop::Fail(self.why())),
            Ended::Exit(3) => Err(Stop::Skip(self.why())),
            other => fail(format_args!("the process ended with {other:?}")),
        }
    }

    /// Ends the child, its outcome left on the shared page.
    fn leave(&self, outcome: Outcome) -> ! {
        let (status, why) = match outcome {
            Ok(()) => sys::exit(0),
            Err(Stop::Fail(why)) => (1, why),
            Err(Stop::Skip(why)) => (3, why),
        };
        self.shared.set_word(8, why.as_bytes().len() as u64);
        self.shared.write(16, why.as_bytes());
        sys::exit(status)
    }

    fn why(&self) -> Text<300> {
        let len = (self.shared.word(8) as usize).min(300);
        let mut bytes = [0u8; 300];
        self.shared.read(16, &mut bytes[..len]);
        Text::of(format_args!("{}", core::str::from_utf8(&bytes[..len]).unwrap_or("?")))
    }

    /// Prints the counts; the exit status.
    fn finish(&self) -> i32 {
        println!(
            "conformance: passed {} failed {} skipped {} differ {}",
            self.passed, self.failed, self.skipped, self.differ
        );
        i32::from(self.failed > 0)
    }
}

/// Fails the case unless an errno was given.
pub fn refused<T: fmt::Debug>(result: guest::Result<T>, wanted: Errno, what: &str) -> Outcome {
    match result {
        Err(error) if error == wanted => Ok(()),
        other => fail(format_args!("{what}: got {other:?}, wanted {wanted}")),
    }
}
