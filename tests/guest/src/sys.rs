// SPDX-License-Identifier: BSD-2-Clause
//! System calls of FreeBSD. On amd64: number in rax, arguments in rdi, rsi, rdx, r10, r8 and r9; on
//! i386: number in eax, arguments on the stack above a word that is not looked at, and int 0x80. On
//! failure the carry flag is set and the first register holds the errno.
//!
//! Structures are those of the architecture: a long and an address are an isize. The i386 programs
//! run on an amd64 kernel, which has their structures as its compatibility with 32 bits.
//!
//! Addresses are numbers, because a test must be able to pass a bad one. Calls that write through
//! an address are given memory of a [`crate::mem::Region`], a static, or a live Rust buffer.

use crate::Result;
use crate::errno::EINVAL;
use crate::mem::Plain;
use crate::seen;
use core::ffi::CStr;

/// Open flags, as in <fcntl.h>.
#[allow(missing_docs)]
pub mod open_flags {
    pub const O_RDONLY: i32 = 0;
    pub const O_WRONLY: i32 = 1;
    pub const O_RDWR: i32 = 2;
    pub const O_NONBLOCK: i32 = 4;
    pub const O_APPEND: i32 = 8;
    pub const O_CREAT: i32 = 0x200;
    pub const O_TRUNC: i32 = 0x400;
    pub const O_EXCL: i32 = 0x800;
    pub const O_SYNC: i32 = 0x80;
    pub const O_DIRECTORY: i32 = 0x20000;
    pub const O_CLOEXEC: i32 = 0x100000;
    pub const O_PATH: i32 = 0x400000;
}
pub use open_flags::*;

/// Memory protection: readable.
pub const PROT_READ: i32 = 1;
/// Memory protection: writable.
pub const PROT_WRITE: i32 = 2;
/// Mapping seen by children and other processes.
pub const MAP_SHARED: i32 = 1;
/// Mapping of one's own.
pub const MAP_PRIVATE: i32 = 2;
/// Mapping of zeroes, not of a file.
pub const MAP_ANON: i32 = 0x1000;

/// The clock that is never set.
pub const CLOCK_MONOTONIC: i32 = 4;

/// wait4(2): do not wait.
pub const WNOHANG: i32 = 1;
/// Hang-up; here any signal with no other meaning.
pub const SIGKILL: i32 = 9;
/// Bad memory access.
pub const SIGSEGV: i32 = 11;
/// Timer.
pub const SIGALRM: i32 = 14;
/// Writing to what nobody reads.
pub const SIGPIPE: i32 = 13;
/// Socket option: no SIGPIPE.
pub const SO_NOSIGPIPE: i32 = 0x0800;
/// File size limit exceeded.
pub const SIGXFSZ: i32 = 25;
/// Unknown system call.
pub const SIGSYS: i32 = 12;
/// Free for programs.
pub const SIGUSR1: i32 = 30;
/// Restart system calls after the handler.
pub const SA_RESTART: i32 = 2;
/// Ignore the signal.
pub const SIG_IGN: usize = 1;

/// Limit of locked memory, of setrlimit(2).
pub const RLIMIT_MEMLOCK: i32 = 6;
/// File size limit of setrlimit(2).
pub const RLIMIT_FSIZE: i32 = 1;

/// Capsicum right to read at an offset.
pub const CAP_PREAD: u64 = 0x0d;
/// Capsicum right to write at an offset.
pub const CAP_PWRITE: u64 = 0x0e;
/// Capsicum right to read.
pub const CAP_READ: u64 = 0x01;
/// Capsicum right to write.
pub const CAP_WRITE: u64 = 0x02;
/// Capsicum right to sync.
pub const CAP_FSYNC: u64 = 0x100;
/// Capsicum right to wait for events, of the second word.
pub const CAP_KQUEUE_EVENT: u64 = 0x40;
/// Capsicum right to change events, of the second word.
pub const CAP_KQUEUE_CHANGE: u64 = 0x10_0000;
/// Capsicum right to ask for a file's attributes.
pub const CAP_FSTAT: u64 = 0x0008_0000;

/// A long.
pub type Long = isize;

/// The most words that a call has.
const WORDS: usize = 8;

#[cfg(all(target_os = "none", target_arch = "x86_64"))]
fn raw64(number: u64, args: [usize; WORDS]) -> Result<u64> {
    let mut result = number as usize;
    let failed: u8;
    // SAFETY: the kernel keeps every register but those named, and touches only memory that the
    // arguments point to; each wrapper below says why that memory may be touched.
    unsafe {
        core::arch::asm!(
            "syscall",
            "setc {failed}",
            failed = lateout(reg_byte) failed,
            inlateout("rax") result,
            in("rdi") args[0],
            in("rsi") args[1],
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            inlateout("r9") args[5] => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if failed != 0 { Err(crate::Errno(result as i32)) } else { Ok(result as u64) }
}

#[cfg(all(target_os = "none", target_arch = "x86"))]
fn raw64(number: u64, args: [usize; WORDS]) -> Result<u64> {
    let mut low = number as usize;
    let high: usize;
    let word: usize;
    // SAFETY: as above; the words that are pushed are popped again.
    unsafe {
        core::arch::asm!(
            "push dword ptr [ecx + 28]",
            "push dword ptr [ecx + 24]",
            "push dword ptr [ecx + 20]",
            "push dword ptr [ecx + 16]",
            "push dword ptr [ecx + 12]",
            "push dword ptr [ecx + 8]",
            "push dword ptr [ecx + 4]",
            "push dword ptr [ecx]",
            "push 0",
            "int 0x80",
            "setc cl",
            "lea esp, [esp + 36]",
            inlateout("eax") low,
            lateout("edx") high,
            inlateout("ecx") args.as_ptr() => word,
        );
    }
    let failed = word & 0xff;
    if failed != 0 { Err(crate::Errno(low as i32)) } else { Ok((high as u64) << 32 | low as u64) }
}

// FreeBSD's numbers mean something else on another system.
#[cfg(not(target_os = "none"))]
fn raw64(_number: u64, _args: [usize; WORDS]) -> Result<u64> {
    Err(crate::errno::ENOSYS)
}

fn raw(number: u64, args: [usize; WORDS]) -> Result<usize> {
    // In 32 bits the second register means nothing for most calls.
    raw64(number, args).map(|result| result as usize)
}

/// The words of a call.
#[derive(Default)]
struct Args {
    words: [usize; WORDS],
    count: usize,
}

impl Args {
    fn with(mut self, arg: impl Arg) -> Self {
        arg.put(&mut self);
        self
    }

    fn push(&mut self, word: usize) {
        self.words[self.count] = word;
        self.count += 1;
    }
}

/// What may be an argument: a number of 64 bits is two words in 32 bits.
trait Arg {
    fn put(self, args: &mut Args);
}

macro_rules! one_word {
    ($($kind:ty),*) => {$(
        impl Arg for $kind {
            fn put(self, args: &mut Args) {
                args.push(self as usize);
            }
        }
    )*};
}

one_word!(i32, u32, usize, isize);

impl Arg for i64 {
    fn put(self, args: &mut Args) {
        args.push(self as usize);
        #[cfg(target_pointer_width = "32")]
        args.push((self >> 32) as usize);
    }
}

impl<T> Arg for *const T {
    fn put(self, args: &mut Args) {
        args.push(self as usize);
    }
}

impl<T> Arg for *mut T {
    fn put(self, args: &mut Args) {
        args.push(self as usize);
    }
}

macro_rules! call {
    ($number:expr $(, $arg:expr)*) => {
        raw($number, Args::default()$(.with($arg))*.words)
    };
}

/// Any system call by number, for a test of one that has no wrapper.
///
/// # Errors
/// Those of the call.
pub fn call(number: u64, args: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = args;
    let result = raw(number, [a, b, c, d, e, f, 0, 0]);
    seen::note(number, result);
    result
}

/// A time or a span, `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Timespec {
    /// Seconds.
    pub sec: Long,
    /// Nanoseconds.
    pub nsec: Long,
}

// SAFETY: two numbers.
unsafe impl Plain for Timespec {}

impl Timespec {
    /// A span of nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self { sec: (nanos / 1_000_000_000) as Long, nsec: (nanos % 1_000_000_000) as Long }
    }

    /// A span of milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self::from_nanos(ms * 1_000_000)
    }

    /// The span in nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.sec as u64 * 1_000_000_000 + self.nsec as u64
    }
}

/// One piece of a scattered buffer, `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Iovec {
    /// Address.
    pub base: usize,
    /// Bytes.
    pub len: usize,
}

// SAFETY: two numbers.
unsafe impl Plain for Iovec {}

/// What fstat(2) tells, `struct stat` since FreeBSD 12.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u16,
    pad0: i16,
    pub uid: u32,
    pub gid: u32,
    pad1: i32,
    pub rdev: u64,
    times: [Time; 4],
    pub size: i64,
    pub blocks: i64,
    pub blksize: i32,
    pub flags: u32,
    pub gen_number: u64,
    spare: [u64; 10],
}

#[cfg(target_pointer_width = "64")]
type Time = Timespec;
/// In 32 bits with a word for the time after 2038.
#[cfg(target_pointer_width = "32")]
type Time = [i32; 3];

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Stat>() == 224 && core::mem::offset_of!(Stat, size) == 112);
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Stat>() == 208 && core::mem::offset_of!(Stat, size) == 96);

impl Stat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

#[repr(C)]
struct ThrParam {
    entry: usize,
    arg: usize,
    stack: usize,
    stack_size: usize,
    tls: usize,
    tls_size: usize,
    child_tid: usize,
    parent_tid: usize,
    flags: i32,
    rtp: usize,
    spare: [usize; 3],
}

const _: () = assert!(size_of::<ThrParam>() == 13 * size_of::<usize>());

#[repr(C)]
struct Sigaction {
    handler: usize,
    flags: i32,
    mask: [u32; 4],
}

const _: () = assert!(size_of::<Sigaction>() == 16 + 2 * size_of::<usize>());

/// Ends the process.
pub fn exit(status: i32) -> ! {
    loop {
        let _ = call!(1, status);
    }
}

/// The answer of [`fork`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// This is the child.
    Child,
    /// This is the parent; the child's process id.
    Parent(i32),
}

/// fork(2). Only the calling thread goes on in the child.
///
/// # Errors
/// Those of the call.
pub fn fork() -> Result<Fork> {
    Ok(match call!(2)? {
        0 => {
            crate::thread::after_fork();
            Fork::Child
        }
        pid => Fork::Parent(pid as i32),
    })
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// wait4(2): the child that ended, and how; `None` with WNOHANG when there is none.
///
/// # Errors
/// Those of the call.
pub fn wait(pid: i32, options: i32) -> Result<Option<(i32, Ended)>> {
    let mut status = 0i32;
    let found = call!(7, pid as isize, &raw mut status, options, 0)? as i32;
    if found == 0 {
        return Ok(None);
    }
    let signal = status & 0x7f;
    let ended = if signal == 0 { Ended::Exit((status >> 8) & 0xff) } else { Ended::Signal(signal) };
    Ok(Some((found, ended)))
}

/// Waits for one child, signals or not.
pub fn wait_for(pid: i32) -> Option<Ended> {
    loop {
        match wait(pid, 0) {
            Ok(ended) => return ended.map(|(_, ended)| ended),
            Err(crate::errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// execve(2) with an empty environment. `argv` holds addresses of strings and ends in 0.
///
/// # Errors
/// Those of the call; it does not return otherwise.
pub fn execve(path: &CStr, argv: &[*const core::ffi::c_char]) -> Result<()> {
    let environment = [0usize];
    call!(59, path.as_ptr(), argv.as_ptr(), environment.as_ptr()).map(|_| ())
}

/// Runs a program: the words of `argv`, the first of which is its path, and a short environment.
///
/// # Errors
/// Those of execve(2), E2BIG with more than 31 words; it does not return otherwise.
pub fn exec_words<'a>(argv: impl Iterator<Item = &'a CStr>) -> Result<()> {
    let mut pointers = [core::ptr::null(); 32];
    for (index, word) in argv.enumerate() {
        // The last pointer stays null: it ends the list.
        if index == pointers.len() - 1 {
            return Err(crate::errno::E2BIG);
        }
        pointers[index] = word.as_ptr();
    }
    let environment = [
        // The base suite's own folder first: it may have its own version of a tool.
        c"PATH=/usr/tests/bin:/sbin:/bin:/usr/sbin:/usr/bin:/rescue".as_ptr(),
        c"HOME=/root".as_ptr(),
        c"TERM=dumb".as_ptr(),
        core::ptr::null(),
    ];
    call!(59, pointers[0], pointers.as_ptr(), environment.as_ptr()).map(|_| ())
}

/// Waits until a descriptor can be read or is at its end, at most `ms`; whether it can.
///
/// # Errors
/// Those of poll(2).
pub fn poll_in(fd: i32, ms: i32) -> Result<bool> {
    let mut entry = [fd, 1];
    call!(209, entry.as_mut_ptr(), 1, ms).map(|ready| ready > 0)
}

/// Makes a descriptor give EAGAIN instead of waiting.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: i32) -> Result<()> {
    call!(92, fd, 4, O_NONBLOCK).map(|_| ())
}

/// Switches the machine off; file systems are not written back.
///
/// # Errors
/// EPERM when not root; it does not return otherwise.
pub fn power_off() -> Result<()> {
    // RB_POWEROFF and RB_NOSYNC.
    call!(55, 0x4000 | 0x4).map(|_| ())
}

/// getpid(2).
pub fn getpid() -> i32 {
    call!(20).unwrap_or(0) as i32
}

/// thr_self(2): the calling thread's number.
///
/// # Errors
/// Those of the call.
pub fn thr_self() -> Result<i64> {
    let mut tid = 0isize;
    call!(432, &raw mut tid)?;
    Ok(tid as i64)
}

/// munlock(2).
///
/// # Errors
/// Those of the call.
pub fn munlock(addr: usize, len: usize) -> Result<()> {
    call!(204, addr, len).map(|_| ())
}

/// kill(2).
///
/// # Errors
/// Those of the call.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    call!(37, pid as isize, signal).map(|_| ())
}

/// setpgid(2).
///
/// # Errors
/// Those of the call.
pub fn setpgid(pid: i32, group: i32) -> Result<()> {
    call!(82, pid, group).map(|_| ())
}

/// setuid(2).
///
/// # Errors
/// Those of the call.
pub fn setuid(uid: u32) -> Result<()> {
    call!(23, uid).map(|_| ())
}

/// seteuid(2).
///
/// # Errors
/// Those of the call.
pub fn seteuid(uid: u32) -> Result<()> {
    call!(183, uid).map(|_| ())
}

/// getuid(2).
pub fn getuid() -> u32 {
    call!(24).unwrap_or(0) as u32
}

/// Sets what a signal does: a handler's address, 0 for the default or [`SIG_IGN`].
///
/// # Errors
/// Those of sigaction(2).
pub fn signal(signal: i32, handler: usize, flags: i32) -> Result<()> {
    let action = Sigaction { handler, flags, mask: [0; 4] };
    call!(416, signal, &raw const action, 0).map(|_| ())
}

static SIGNALS: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

extern "C" fn on_signal(_signal: i32) {
    SIGNALS.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
}

/// Has a signal counted by [`signals`], with SA_RESTART or not.
///
/// # Errors
/// Those of sigaction(2).
pub fn count_signals(which: i32, flags: i32) -> Result<()> {
    signal(which, on_signal as *const () as usize, flags)
}

/// How many signals were counted.
pub fn signals() -> u64 {
    SIGNALS.load(core::sync::atomic::Ordering::SeqCst)
}

/// Blocks of input and output charged to this thread, by getrusage(2).
///
/// # Errors
/// Those of the call.
pub fn thread_blocks() -> Result<(i64, i64)> {
    let mut usage = [0 as Long; 18];
    call!(117, 1, usage.as_mut_ptr())?;
    // Two times, seven counts of memory and faults, then input and output.
    Ok((usage[11] as i64, usage[12] as i64))
}

/// Messages that this thread sent and received (getrusage(2)).
///
/// # Errors
/// Those of the call.
pub fn thread_messages() -> Result<(i64, i64)> {
    let mut usage = [0 as Long; 18];
    call!(117, 1, usage.as_mut_ptr())?;
    Ok((usage[13] as i64, usage[14] as i64))
}

/// open(2).
///
/// # Errors
/// Those of the call.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<i32> {
    call!(5, path.as_ptr(), flags, mode).map(|fd| fd as i32)
}

/// close(2).
///
/// # Errors
/// Those of the call.
pub fn close(fd: i32) -> Result<()> {
    call!(6, fd).map(|_| ())
}

/// dup2(2).
///
/// # Errors
/// Those of the call.
pub fn dup2(from: i32, to: i32) -> Result<i32> {
    call!(90, from, to).map(|fd| fd as i32)
}

/// read(2).
///
/// # Errors
/// Those of the call.
pub fn read(fd: i32, to: &mut [u8]) -> Result<usize> {
    call!(3, fd, to.as_mut_ptr(), to.len())
}

/// write(2).
///
/// # Errors
/// Those of the call.
pub fn write(fd: i32, from: &[u8]) -> Result<usize> {
    call!(4, fd, from.as_ptr(), from.len())
}

/// pread(2) into a Rust buffer.
///
/// # Errors
/// Those of the call.
pub fn pread(fd: i32, to: &mut [u8], offset: i64) -> Result<usize> {
    call!(475, fd, to.as_mut_ptr(), to.len(), offset)
}

/// pread(2) to an address.
///
/// # Errors
/// Those of the call.
pub fn pread_at(fd: i32, addr: usize, len: usize, offset: i64) -> Result<usize> {
    call!(475, fd, addr, len, offset)
}

/// pwrite(2).
///
/// # Errors
/// Those of the call.
pub fn pwrite(fd: i32, from: &[u8], offset: i64) -> Result<usize> {
    call!(476, fd, from.as_ptr(), from.len(), offset)
}

/// pwrite(2) from an address.
///
/// # Errors
/// Those of the call.
pub fn pwrite_at(fd: i32, addr: usize, len: usize, offset: i64) -> Result<usize> {
    call!(476, fd, addr, len, offset)
}

/// lseek(2) from the start.
///
/// # Errors
/// Those of the call.
pub fn seek(fd: i32, offset: i64) -> Result<i64> {
    raw64(478, Args::default().with(fd).with(offset).with(0).words).map(|at| at as i64)
}

/// lseek(2): where the descriptor stands.
///
/// # Errors
/// Those of the call.
pub fn tell(fd: i32) -> Result<i64> {
    raw64(478, Args::default().with(fd).with(0i64).with(1).words).map(|at| at as i64)
}

/// ftruncate(2).
///
/// # Errors
/// Those of the call.
pub fn ftruncate(fd: i32, len: i64) -> Result<()> {
    call!(480, fd, len).map(|_| ())
}

/// fsync(2).
///
/// # Errors
/// Those of the call.
pub fn fsync(fd: i32) -> Result<()> {
    call!(95, fd).map(|_| ())
}

/// fstat(2).
///
/// # Errors
/// Those of the call.
pub fn fstat(fd: i32) -> Result<Stat> {
    let mut stat = core::mem::MaybeUninit::<Stat>::zeroed();
    call!(551, fd, stat.as_mut_ptr())?;
    // SAFETY: all of it is numbers, zeroed here and filled by the kernel.
    Ok(unsafe { stat.assume_init() })
}

/// getdirentries(2); see [`dirents`].
///
/// # Errors
/// Those of the call.
pub fn getdirentries(fd: i32, to: &mut [u8]) -> Result<usize> {
    call!(554, fd, to.as_mut_ptr(), to.len(), 0)
}

/// The entries that [`getdirentries`] left in a buffer: type and name, without "." and "..".
pub fn dirents(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    core::iter::from_fn(move || {
        loop {
            // A record: file number, offset, record length, type, padding, name length, padding,
            // name.
            let len = usize::from(u16::from_le_bytes(rest.get(16..18)?.try_into().ok()?));
            let record = rest.get(..len)?;
            rest = rest.get(len..)?;
            let kind = *record.get(18)?;
            let name_len = usize::from(u16::from_le_bytes(record.get(20..22)?.try_into().ok()?));
            let name = record.get(24..24 + name_len)?;
            let number = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
            if number != 0 && name != b"." && name != b".." {
                return Some((kind, name));
            }
        }
    })
}

/// Directory entry type of a regular file.
pub const DT_REG: u8 = 8;
/// Directory entry type of a directory.
pub const DT_DIR: u8 = 4;

/// The type of the file system that holds an open file, such as "ufs".
///
/// # Errors
/// Those of fstatfs(2).
pub fn fs_type(fd: i32) -> Result<crate::out::Text<16>> {
    let mut bytes = [0u8; 2344];
    call!(556, fd, bytes.as_mut_ptr())?;
    let name = bytes[280..296].split(|&byte| byte == 0).next().unwrap_or(&[]);
    Ok(crate::out::Text::of(format_args!("{}", core::str::from_utf8(name).unwrap_or("?"))))
}

/// rctl_get_racct(2): what a subject, such as "process:1", has been charged, as words `resource=amount`
/// with commas between and a NUL behind.
///
/// # Errors
/// Those of the call.
pub fn rctl_get_racct(subject: &str, to: &mut [u8]) -> Result<()> {
    rctl(525, subject, to)
}

/// rctl_add_rule(2), such as "process:1:memorylocked:deny=4096".
///
/// # Errors
/// Those of the call.
pub fn rctl_add_rule(rule: &str) -> Result<()> {
    rctl(528, rule, &mut [])
}

fn rctl(number: u64, text: &str, to: &mut [u8]) -> Result<()> {
    let mut words = [0u8; 64];
    let words = words.get_mut(..=text.len()).ok_or(EINVAL)?;
    words[..text.len()].copy_from_slice(text.as_bytes());
    let to_at = if to.is_empty() { 0 } else { to.as_mut_ptr() as usize };
    call!(number, words.as_ptr(), words.len(), to_at, to.len()).map(|_| ())
}

/// unlink(2).
///
/// # Errors
/// Those of the call.
pub fn unlink(path: &CStr) -> Result<()> {
    call!(10, path.as_ptr()).map(|_| ())
}

/// mkdir(2).
///
/// # Errors
/// Those of the call.
pub fn mkdir(path: &CStr, mode: u32) -> Result<()> {
    call!(136, path.as_ptr(), mode).map(|_| ())
}

/// rmdir(2).
///
/// # Errors
/// Those of the call.
pub fn rmdir(path: &CStr) -> Result<()> {
    call!(137, path.as_ptr()).map(|_| ())
}

/// mkfifo(2).
///
/// # Errors
/// Those of the call.
pub fn mkfifo(path: &CStr, mode: u32) -> Result<()> {
    call!(132, path.as_ptr(), mode).map(|_| ())
}

/// Removes a file or a whole tree, as far as permissions allow.
///
/// # Errors
/// The first one met; the rest of the tree is tried nevertheless.
pub fn remove_tree(path: &mut crate::path::Path) -> Result<()> {
    let Ok(fd) = open(path.as_cstr(), O_RDONLY | O_DIRECTORY, 0) else {
        return unlink(path.as_cstr());
    };
    let mut first = Ok(());
    let mut bytes = [0u8; 4096];
    // Removing moves entries about, so the directory is read from its start until it is empty or
    // a round removed nothing.
    loop {
        let mut removed = 0;
        let _ = seek(fd, 0);
        while let Ok(count @ 1..) = getdirentries(fd, &mut bytes) {
            for (_, name) in dirents(&bytes[..count]) {
                let before = path.push(name);
                match remove_tree(path) {
                    Ok(()) => removed += 1,
                    Err(error) => first = first.and(Err(error)),
                }
                path.truncate(before);
            }
        }
        if removed == 0 {
            break;
        }
    }
    let _ = close(fd);
    first.and(rmdir(path.as_cstr()))
}

/// chdir(2).
///
/// # Errors
/// Those of the call.
pub fn chdir(path: &CStr) -> Result<()> {
    call!(12, path.as_ptr()).map(|_| ())
}

/// pipe2(2): the reading and the writing end.
///
/// # Errors
/// Those of the call.
pub fn pipe() -> Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    call!(542, ends.as_mut_ptr(), 0)?;
    Ok((ends[0], ends[1]))
}

/// rfork(2) of a child that shares the descriptors; `None` in the child.
///
/// # Errors
/// Those of the call.
pub fn fork_with_descriptors_shared() -> Result<Option<i32>> {
    // RFPROC alone.
    Ok(match call!(251, 1 << 4)? {
        0 => {
            crate::thread::after_fork();
            None
        }
        pid => Some(pid as i32),
    })
}

/// socketpair(2) of stream sockets in the local domain.
///
/// # Errors
/// Those of the call.
pub fn socketpair() -> Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    call!(135, 1, 1, 0, ends.as_mut_ptr())?;
    Ok((ends[0], ends[1]))
}

/// A stream or datagram socket in the local domain.
///
/// # Errors
/// Those of socket(2).
pub fn local_socket(kind: i32) -> Result<i32> {
    call!(97, 1, kind, 0).map(|fd| fd as i32)
}

/// socketpair(2) of datagram sockets in the local domain.
///
/// # Errors
/// Those of the call.
pub fn datagram_pair() -> Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    call!(135, 1, 2, 0, ends.as_mut_ptr())?;
    Ok((ends[0], ends[1]))
}

/// bind(2) to a name in the local domain, of less than 100 bytes.
///
/// # Errors
/// Those of the call.
pub fn bind_local(fd: i32, path: &CStr) -> Result<()> {
    let name = path.to_bytes();
    let mut address = [0u8; 106];
    // Length, family, name.
    (address[0], address[1]) = (106, 1);
    address[2..2 + name.len()].copy_from_slice(name);
    call!(104, fd, address.as_ptr(), address.len()).map(|_| ())
}

/// listen(2).
///
/// # Errors
/// Those of the call.
pub fn listen(fd: i32) -> Result<()> {
    call!(106, fd, 5).map(|_| ())
}

/// setsockopt(2) of a number at the level of sockets.
///
/// # Errors
/// Those of the call.
pub fn set_socket_option(fd: i32, option: i32, value: i32) -> Result<()> {
    call!(105, fd, 0xffff, option, &raw const value, size_of::<i32>()).map(|_| ())
}

/// Runs a program with its output thrown away; its exit status, -1 when it did not exit.
///
/// # Errors
/// Those of fork(2).
pub fn run_quietly(argv: &[&CStr]) -> Result<i32> {
    match fork()? {
        Fork::Parent(pid) => Ok(match wait_for(pid) {
            Some(Ended::Exit(status)) => status,
            _ => -1,
        }),
        Fork::Child => {
            if let Ok(null) = open(c"/dev/null", O_RDWR, 0) {
                for fd in 0..3 {
                    let _ = dup2(null, fd);
                }
            }
            let _ = exec_words(argv.iter().copied());
            exit(127)
        }
    }
}

/// shm_open2(2) of an anonymous object.
///
/// # Errors
/// Those of the call.
pub fn shm_anon() -> Result<i32> {
    call!(571, 1, O_RDWR, 0o600, 0, 0).map(|fd| fd as i32)
}

/// kqueue(2).
///
/// # Errors
/// Those of the call.
pub fn kqueue() -> Result<i32> {
    call!(362).map(|fd| fd as i32)
}

/// How long the processors have been idle, together, in microseconds: the run time of the process
/// whose number is `idle`, if it is the idle process. Counted where threads are switched.
pub fn idle_us(idle: i32) -> Option<u64> {
    // kern.proc.pid; struct kinfo_proc has 1088 bytes, the run time at 328 and the name at 447.
    let mib = [1i32, 14, 1, idle];
    let mut bytes = [0u8; 1088];
    let mut len = bytes.len();
    call!(202, mib.as_ptr(), 4, bytes.as_mut_ptr(), &raw mut len, 0, 0).ok()?;
    let runtime = u64::from_le_bytes(bytes[328..336].try_into().ok()?);
    (len == bytes.len() && bytes[447..452] == *b"idle\0").then_some(runtime)
}

/// mmap(2) at an address of the kernel's choice.
///
/// # Errors
/// Those of the call.
pub fn mmap(len: usize, prot: i32, flags: i32, fd: i32) -> Result<usize> {
    call!(477, 0, len, prot, flags, fd, 0i64)
}

/// mmap(2) of zeroes at an address, in place of what is there.
///
/// # Errors
/// Those of the call.
pub fn mmap_over(addr: usize, len: usize, prot: i32) -> Result<()> {
    // MAP_FIXED.
    call!(477, addr, len, prot, MAP_ANON | MAP_PRIVATE | 0x10, -1, 0i64).map(|_| ())
}

/// recvfrom(2) without waiting.
///
/// # Errors
/// Those of the call; EAGAIN when nothing is there.
pub fn receive(fd: i32, to: &mut [u8]) -> Result<usize> {
    // MSG_DONTWAIT.
    call!(29, fd, to.as_mut_ptr(), to.len(), 0x80, 0, 0)
}

/// sendto(2) without waiting and without SIGPIPE.
///
/// # Errors
/// Those of the call; EAGAIN when there is no room.
pub fn send(fd: i32, from: &[u8]) -> Result<usize> {
    // MSG_DONTWAIT and MSG_NOSIGNAL.
    call!(133, fd, from.as_ptr(), from.len(), 0x2_0080, 0, 0)
}

/// munmap(2).
///
/// # Errors
/// Those of the call.
pub fn munmap(addr: usize, len: usize) -> Result<()> {
    call!(73, addr, len).map(|_| ())
}

/// mprotect(2).
///
/// # Errors
/// Those of the call.
pub fn mprotect(addr: usize, len: usize, prot: i32) -> Result<()> {
    call!(74, addr, len, prot).map(|_| ())
}

/// nanosleep(2).
///
/// # Errors
/// Those of the call; EINTR after a signal.
pub fn nanosleep(span: &Timespec) -> Result<()> {
    call!(240, &raw const *span, 0).map(|_| ())
}

/// clock_gettime(2).
///
/// # Errors
/// Those of the call.
pub fn clock_gettime(clock: i32) -> Result<Timespec> {
    let mut now = Timespec::default();
    call!(232, clock, &raw mut now)?;
    Ok(now)
}

/// sched_yield(2).
pub fn sched_yield() {
    let _ = call!(331);
}

/// setitimer(2) of real time: SIGALRM after `first` milliseconds, then every `every`; 0 is never.
///
/// # Errors
/// Those of the call.
pub fn alarm_ms(first: u64, every: u64) -> Result<()> {
    let micros = |ms: u64| [ms as Long / 1000, ms as Long % 1000 * 1000];
    let timer = [micros(every), micros(first)];
    call!(83, 0, timer.as_ptr(), 0).map(|_| ())
}

/// setrlimit(2): sets the soft limit.
///
/// # Errors
/// Those of the call.
pub fn set_soft_limit(which: i32, limit: i64) -> Result<()> {
    let mut both = [0i64; 2];
    call!(194, which, both.as_mut_ptr())?;
    both[0] = limit;
    call!(195, which, both.as_ptr()).map(|_| ())
}

/// cap_enter(2).
///
/// # Errors
/// ENOSYS when the kernel has no capability mode.
pub fn cap_enter() -> Result<()> {
    call!(516).map(|_| ())
}

/// cap_rights_limit(2), for rights of the first word only.
///
/// # Errors
/// Those of the call.
pub fn cap_rights_limit(fd: i32, rights: u64) -> Result<()> {
    cap_rights_limit_both(fd, rights, 0)
}

/// cap_rights_limit(2), for rights of both words.
///
/// # Errors
/// Those of the call.
pub fn cap_rights_limit_both(fd: i32, first: u64, second: u64) -> Result<()> {
    let rights = [1u64 << 57 | first, 1u64 << 58 | second];
    call!(533, fd, rights.as_ptr()).map(|_| ())
}

/// thr_new(2): starts a thread at `entry` with a stack; its number is stored at `tid`.
///
/// # Errors
/// Those of the call.
pub fn thr_new(
    entry: usize,
    arg: usize,
    stack: usize,
    stack_size: usize,
    tid: usize,
) -> Result<()> {
    let param = ThrParam {
        entry,
        arg,
        stack,
        stack_size,
        tls: 0,
        tls_size: 0,
        child_tid: 0,
        parent_tid: tid,
        flags: 0,
        rtp: 0,
        spare: [0; 3],
    };
    call!(455, &raw const param, size_of::<ThrParam>()).map(|_| ())
}

/// thr_exit(2): ends the thread, stores 1 at `state` and wakes who waits there.
pub fn thr_exit(state: usize) -> ! {
    loop {
        let _ = call!(431, state);
    }
}

/// thr_kill(2): sends a signal to a thread of this process.
///
/// # Errors
/// Those of the call.
pub fn thr_kill(tid: i64, signal: i32) -> Result<()> {
    call!(433, tid as Long, signal).map(|_| ())
}

/// _umtx_op(2): sleeps while the long at `addr` is `value`.
///
/// # Errors
/// Those of the call.
pub fn umtx_wait(addr: usize, value: usize) -> Result<()> {
    call!(454, addr, 2, value, 0, 0).map(|_| ())
}

/// sysctlbyname(3): returns how many bytes of `old` were filled.
///
/// # Errors
/// Those of the call.
pub fn sysctlbyname(name: &str, old: &mut [u8], new: &[u8]) -> Result<usize> {
    let mut len = old.len();
    let (old_at, len_at) =
        if old.is_empty() { (0, 0) } else { (old.as_mut_ptr() as usize, &raw mut len as usize) };
    let new_at = if new.is_empty() { 0 } else { new.as_ptr() as usize };
    call!(570, name.as_ptr(), name.len(), old_at, len_at, new_at, new.len())?;
    Ok(len)
}

/// The file this program was started from.
///
/// # Errors
/// Those of sysctl(3).
pub fn own_path() -> Result<crate::path::Path> {
    // kern.proc.pathname of the calling process.
    let mib = [1i32, 14, 12, -1];
    let mut bytes = [0u8; 1024];
    let mut len = bytes.len();
    call!(202, mib.as_ptr(), 4, bytes.as_mut_ptr(), &raw mut len, 0, 0)?;
    Ok(crate::path::Path::new(bytes[..len].split(|&byte| byte == 0).next().unwrap_or(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn record(kind: u8, name: &[u8]) -> Vec<u8> {
        let len = (24 + name.len() + 1).next_multiple_of(8);
        let mut bytes = std::vec![0; len];
        bytes[0] = 7;
        bytes[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        bytes[18] = kind;
        bytes[20..22].copy_from_slice(&(name.len() as u16).to_le_bytes());
        bytes[24..24 + name.len()].copy_from_slice(name);
        bytes
    }

    #[test]
    fn reads_directory_records() {
        let mut bytes = record(DT_DIR, b".");
        bytes.extend(record(DT_DIR, b"sub"));
        bytes.extend(record(8, b"a.file"));
        let found: Vec<_> = dirents(&bytes).collect();
        assert_eq!(found, [(DT_DIR, &b"sub"[..]), (8, &b"a.file"[..])]);
    }

    #[test]
    fn stops_at_a_cut_record() {
        let bytes = record(8, b"a.file");
        assert_eq!(dirents(&bytes[..20]).count(), 0);
    }

    #[test]
    fn spans() {
        assert_eq!(Timespec::from_ms(1500), Timespec { sec: 1, nsec: 500_000_000 });
        assert_eq!(Timespec::from_ms(1500).as_nanos(), 1_500_000_000);
    }
}
