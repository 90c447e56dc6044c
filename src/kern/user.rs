// SPDX-License-Identifier: BSD-2-Clause
//! User memory: an address is an allegation until copyin(9), copyout(9), fetch(9) or store(9) has
//! tried it.
//!
//! # Context
//! All of these may sleep (the page may have to be read in) and act on the address space of the
//! current process. None may be called with a mutex held.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::mem::MaybeUninit;

use sys_bindings as sys;

use crate::model::Errno;

/// An address in the current process, as the process named it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserPtr(u64);

/// Types of which every bit pattern is a value.
///
/// # Safety
/// The type has no padding and no invalid value.
pub unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: two integers.
unsafe impl Plain for sys::timespec {}
// SAFETY: integers and raw pointers; sigevent's padding is never looked at.
unsafe impl Plain for sys::aiocb {}

impl UserPtr {
    /// Takes an address for what it may be.
    pub const fn new(address: u64) -> UserPtr {
        UserPtr(address)
    }

    /// The bare address.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// Whether the process passed NULL.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The address `bytes` further on; wraps, and then faults when used.
    pub const fn offset(self, bytes: usize) -> UserPtr {
        UserPtr(self.0.wrapping_add(bytes as u64))
    }

    fn as_ptr(self) -> *mut c_void {
        core::ptr::without_provenance_mut(self.0 as usize)
    }

    /// Reads a value. EFAULT when it is not all readable.
    pub fn copyin<T: Plain>(self) -> Result<T, Errno> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: copyin checks the user's side; the kernel's is ours and large enough.
        let code = unsafe { sys::copyin(self.as_ptr(), value.as_mut_ptr().cast(), size_of::<T>()) };
        Errno::check(code)?;
        // SAFETY: copyin filled all of it, and every pattern is a value.
        Ok(unsafe { value.assume_init() })
    }

    /// Reads into `values`. EFAULT when it is not all readable.
    pub fn copyin_slice<T: Plain>(self, values: &mut [T]) -> Result<(), Errno> {
        // SAFETY: as in copyin; a partly written slice of plain values is still one.
        let code =
            unsafe { sys::copyin(self.as_ptr(), values.as_mut_ptr().cast(), size_of_val(values)) };
        Errno::check(code)
    }

    /// Reads `count` values. EFAULT when they are not all readable.
    fn copyin_vec<T: Plain>(self, count: usize) -> Result<Vec<T>, Errno> {
        let mut values = Vec::<T>::with_capacity(count);
        let room = values.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: copyin checks the user's side; the kernel's has room for so many.
        let code = unsafe { sys::copyin(self.as_ptr(), room, count * size_of::<T>()) };
        Errno::check(code)?;
        // SAFETY: copyin filled them, and every pattern is a value.
        unsafe { values.set_len(count) };
        Ok(values)
    }

    /// Reads one word as fuword(9) does: -1 also for a fault.
    pub fn fuword(self) -> i64 {
        // SAFETY: fuword checks the address.
        unsafe { sys::fuword(self.as_ptr()) }
    }

    /// Reads 32 bits as fuword32(9) does: -1 also for a fault.
    fn fuword32(self) -> i32 {
        // SAFETY: fuword32 checks the address.
        unsafe { sys::fuword32(self.as_ptr()) }
    }

    /// Writes 32 bits. EFAULT when they are not writable.
    fn suword32(self, word: i32) -> Result<(), Errno> {
        // SAFETY: suword32 checks the address.
        let code = unsafe { sys::suword32(self.as_ptr(), word) };
        if code == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes one word. EFAULT when it is not writable.
    pub fn suword(self, word: i64) -> Result<(), Errno> {
        // SAFETY: suword checks the address.
        let code = unsafe { sys::suword(self.as_ptr(), word) };
        if code == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

/// How a program's structures look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    Native,
    /// As before FreeBSD 7: another sigevent.
    FreeBsd6,
    /// A 32-bit program.
    Bits32,
    /// Both.
    FreeBsd6Bits32,
}

impl Abi {
    /// Whether pointers and longs have 32 bits.
    pub fn is_32_bit(self) -> bool {
        matches!(self, Abi::Bits32 | Abi::FreeBsd6Bits32)
    }

    /// The private words' size in bytes.
    fn word(self) -> usize {
        if self.is_32_bit() { 4 } else { 8 }
    }

    /// Where the private words begin in an aiocb; the old layouts agree with the new ones in this.
    fn private(self) -> usize {
        if self.is_32_bit() {
            core::mem::offset_of!(Aiocb32, private)
        } else {
            core::mem::offset_of!(sys::aiocb, _aiocb_private)
        }
    }

    /// Reads `count` pointers.
    ///
    /// # Errors
    /// EFAULT.
    pub fn copyin_pointers(self, from: UserPtr, count: usize) -> Result<Vec<u64>, Errno> {
        if !self.is_32_bit() {
            return from.copyin_vec(count);
        }
        let narrow: Vec<u32> = from.copyin_vec(count)?;
        Ok(narrow.into_iter().map(u64::from).collect())
    }

    /// Reads as many pointers as there is room for in `pointers`.
    ///
    /// # Errors
    /// EFAULT.
    pub fn copyin_pointers_to(self, from: UserPtr, pointers: &mut [u64]) -> Result<(), Errno> {
        if !self.is_32_bit() {
            return from.copyin_slice(pointers);
        }
        let narrow: Vec<u32> = from.copyin_vec(pointers.len())?;
        for (wide, narrow) in pointers.iter_mut().zip(narrow) {
            *wide = u64::from(narrow);
        }
        Ok(())
    }

    /// Writes a pointer.
    ///
    /// # Errors
    /// EFAULT.
    pub fn store_pointer(self, to: UserPtr, pointer: u64) -> Result<(), Errno> {
        self.store(to, pointer.cast_signed())
    }

    fn store(self, to: UserPtr, word: i64) -> Result<(), Errno> {
        if self.is_32_bit() { to.suword32(word as i32) } else { to.suword(word) }
    }

    fn fetch(self, from: UserPtr) -> i64 {
        if self.is_32_bit() { i64::from(from.fuword32()) } else { from.fuword() }
    }

    /// Reads a time span.
    ///
    /// # Errors
    /// EFAULT.
    pub fn copyin_timespec(self, from: UserPtr) -> Result<(i64, i64), Errno> {
        if self.is_32_bit() {
            let [seconds, nanoseconds]: [i32; 2] = from.copyin()?;
            return Ok((i64::from(seconds), i64::from(nanoseconds)));
        }
        let span: sys::timespec = from.copyin()?;
        Ok((span.tv_sec, span.tv_nsec))
    }

    /// Reads a sigevent.
    ///
    /// # Errors
    /// EFAULT. EINVAL: an unknown way to be told, where this ABI says so here.
    pub fn copyin_sigevent(self, from: UserPtr) -> Result<Sigevent, Errno> {
        match self {
            Abi::Native => Ok(Sigevent::native(&from.copyin()?)),
            Abi::FreeBsd6 => Sigevent::old(&from.copyin()?),
            Abi::Bits32 => Sigevent::bits32(&from.copyin()?),
            Abi::FreeBsd6Bits32 => Sigevent::old32(&from.copyin()?),
        }
    }
}

/// struct osigevent.
#[derive(Clone, Copy)]
#[repr(C)]
struct OldSigevent {
    notify: i32,
    /// Or the kqueue.
    signo: i32,
    value: u64,
}

/// struct oaiocb; the private part is where the current one has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct OldAiocb {
    fildes: i32,
    pad: i32,
    offset: i64,
    buf: u64,
    nbytes: u64,
    sigevent: OldSigevent,
    lio_opcode: i32,
    reqprio: i32,
    private: [u64; 3],
}

/// struct sigevent of a 32-bit program.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sigevent32 {
    notify: i32,
    /// Or the kqueue.
    signo: i32,
    value: u32,
    /// Thread, or the kevent's flags.
    un: [i32; 8],
}

/// struct aiocb of a 32-bit program.
#[derive(Clone, Copy)]
#[repr(C)]
struct Aiocb32 {
    fildes: i32,
    /// 64 bits, aligned to 4 bytes.
    offset: [u32; 2],
    buf: u32,
    nbytes: u32,
    spare: [i32; 2],
    spare2: u32,
    lio_opcode: i32,
    reqprio: i32,
    private: [i32; 3],
    sigevent: Sigevent32,
}

/// struct osigevent of a 32-bit program.
#[derive(Clone, Copy)]
#[repr(C)]
struct OldSigevent32 {
    notify: i32,
    /// Or the kqueue.
    signo: i32,
    value: u32,
}

/// struct oaiocb of a 32-bit program.
#[derive(Clone, Copy)]
#[repr(C)]
struct OldAiocb32 {
    fildes: i32,
    offset: [u32; 2],
    buf: u32,
    nbytes: u32,
    sigevent: OldSigevent32,
    lio_opcode: i32,
    reqprio: i32,
    private: [i32; 3],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<OldAiocb>() == 80 && offset_of!(OldAiocb, lio_opcode) == 48);
    assert!(offset_of!(OldAiocb, private) == offset_of!(sys::aiocb, _aiocb_private));
    assert!(size_of::<Aiocb32>() == 96 && offset_of!(Aiocb32, sigevent) == 52);
    assert!(size_of::<OldAiocb32>() == 52 && offset_of!(OldAiocb32, lio_opcode) == 32);
    assert!(offset_of!(Aiocb32, private) == 40);
    assert!(offset_of!(OldAiocb32, private) == offset_of!(Aiocb32, private));
};

// SAFETY: integers without padding.
unsafe impl Plain for [i32; 2] {}
// SAFETY: integers without padding.
unsafe impl Plain for OldSigevent {}
// SAFETY: integers without padding.
unsafe impl Plain for OldAiocb {}
// SAFETY: integers without padding.
unsafe impl Plain for Sigevent32 {}
// SAFETY: integers without padding.
unsafe impl Plain for Aiocb32 {}
// SAFETY: integers without padding.
unsafe impl Plain for OldSigevent32 {}
// SAFETY: integers without padding.
unsafe impl Plain for OldAiocb32 {}
// SAFETY: integers and raw pointers; padding is never looked at.
unsafe impl Plain for sys::sigevent {}

/// How the end of something is to be told, as the user put it.
#[derive(Clone, Copy)]
pub struct Sigevent {
    notify: i32,
    /// Or the kqueue.
    signo: i32,
    value: u64,
    thread: i32,
    kevent_flags: u16,
}

impl Sigevent {
    /// Nothing is to be told.
    const NONE: Sigevent = Sigevent {
        notify: sys::SIGEV_NONE.cast_signed(),
        signo: 0,
        value: 0,
        thread: 0,
        kevent_flags: 0,
    };

    fn native(raw: &sys::sigevent) -> Sigevent {
        // SAFETY: both unions hold plain integers and pointers, all of them copied in.
        let (value, thread, kevent_flags) = unsafe {
            (raw.sigev_value.sival_ptr, raw._sigev_un._threadid, raw._sigev_un._kevent_flags)
        };
        Sigevent {
            notify: raw.sigev_notify,
            signo: raw.sigev_signo,
            value: value.addr() as u64,
            thread,
            kevent_flags,
        }
    }

    fn old(raw: &OldSigevent) -> Result<Sigevent, Errno> {
        let event =
            Sigevent { notify: raw.notify, signo: raw.signo, value: raw.value, ..Sigevent::NONE };
        match raw.notify.cast_unsigned() {
            sys::SIGEV_NONE => Ok(Sigevent::NONE),
            sys::SIGEV_SIGNAL | sys::SIGEV_KEVENT => Ok(event),
            _ => Err(Errno::EINVAL),
        }
    }

    fn old32(raw: &OldSigevent32) -> Result<Sigevent, Errno> {
        let OldSigevent32 { notify, signo, value } = *raw;
        Sigevent::old(&OldSigevent { notify, signo, value: u64::from(value) })
    }

    fn bits32(raw: &Sigevent32) -> Result<Sigevent, Errno> {
        let event = Sigevent {
            notify: raw.notify,
            signo: raw.signo,
            value: u64::from(raw.value),
            thread: raw.un[0],
            kevent_flags: raw.un[0] as u16,
        };
        match raw.notify.cast_unsigned() {
            sys::SIGEV_NONE => Ok(Sigevent::NONE),
            sys::SIGEV_SIGNAL | sys::SIGEV_THREAD_ID | sys::SIGEV_KEVENT => Ok(event),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Checks what can be checked without a kqueue.
    ///
    /// # Errors
    /// EINVAL: an unknown way, or a signal number out of range.
    pub fn check(&self) -> Result<Notify, Errno> {
        match self.notify.cast_unsigned() {
            sys::SIGEV_NONE => Ok(Notify::None),
            sys::SIGEV_KEVENT => Ok(Notify::Kevent(KqueueEvent {
                kqueue: self.signo,
                flags: self.kevent_flags,
                udata: self.value,
            })),
            kind @ (sys::SIGEV_SIGNAL | sys::SIGEV_THREAD_ID) => {
                // The kernel's signals are 1 to _SIG_MAXSIG.
                if !(1..=sys::_SIG_MAXSIG.cast_signed()).contains(&self.signo) {
                    return Err(Errno::EINVAL);
                }
                Ok(Notify::Signal(SignalEvent {
                    number: self.signo,
                    value: self.value,
                    thread: (kind == sys::SIGEV_THREAD_ID).then_some(self.thread),
                }))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// How the end of something is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    None,
    Signal(SignalEvent),
    Kevent(KqueueEvent),
}

/// A signal to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalEvent {
    pub number: i32,
    pub value: u64,
    /// The thread it is for; else the process.
    pub thread: Option<i32>,
}

/// A kqueue to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KqueueEvent {
    /// Its descriptor.
    pub kqueue: i32,
    /// The knote's, besides what every one has.
    pub flags: u16,
    pub udata: u64,
}

impl KqueueEvent {
    /// Checks the flags a request may ask for.
    ///
    /// # Errors
    /// EINVAL: others than EV_ONESHOT, EV_CLEAR and EV_DISPATCH.
    pub fn check_flags(&self) -> Result<(), Errno> {
        let allowed = (sys::EV_ONESHOT | sys::EV_CLEAR | sys::EV_DISPATCH) as u16;
        if self.flags & !allowed == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The same without flags: a list's cannot be chosen.
    #[must_use]
    pub fn without_flags(&self) -> KqueueEvent {
        KqueueEvent { flags: 0, ..*self }
    }
}

/// A struct aiocb in the process: what may be stored in it and when is aio_read(2)'s contract.
///
/// Stores that fault are ignored where the result does not depend on them, as by the built-in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserAiocb {
    at: UserPtr,
    abi: Abi,
}

/// What a request asks for, copied in once.
pub struct Aiocb {
    pub fd: i32,
    pub offset: i64,
    /// The buffer, or the array of iovecs.
    pub buffer: UserPtr,
    /// The buffer's length, or the number of iovecs.
    pub nbytes: usize,
    /// lio_listio(2)'s opcode.
    pub opcode: i32,
    /// The ABI has vectored operations.
    knows_vectors: bool,
    /// EINVAL: an unknown way to be told, where this ABI knows it already; it is an error only
    /// after those of the iovecs.
    pub sigevent: Result<Sigevent, Errno>,
}

impl UserAiocb {
    /// Takes an address for what it may be.
    pub const fn at(abi: Abi, address: u64) -> UserAiocb {
        UserAiocb { at: UserPtr::new(address), abi }
    }

    /// The bare address, by which the request is known.
    pub const fn address(self) -> u64 {
        self.at.address()
    }

    /// How it looks.
    pub const fn abi(self) -> Abi {
        self.abi
    }

    /// A private word: 0 is `status`, 1 is `error`, 2 is `kernelinfo`, called `spare` from FreeBSD 15
    /// on.
    fn word(self, index: usize) -> UserPtr {
        self.at.offset(self.abi.private() + index * self.abi.word())
    }

    /// Marks the aiocb as submitted and nothing known: the first thing every submission does.
    pub fn store_initial(self) {
        self.store_status(-1);
        self.store_error(0);
        if HAS_KERNELINFO {
            let _ = self.abi.store(self.word(2), -1);
        }
    }

    /// Stores the status word: bytes moved, or -1.
    pub fn store_status(self, status: i64) {
        let _ = self.abi.store(self.word(0), status);
    }

    /// Stores the error word.
    pub fn store_error(self, error: i64) {
        let _ = self.abi.store(self.word(1), error);
    }

    /// Stores the request's number, where the kernel's ABI has it.
    ///
    /// # Errors
    /// EINVAL: the aiocb is not writable. A request without this word could not be told from others
    /// by a debugger; the built-in refuses it so.
    #[inline]
    pub fn store_kernelinfo(self, number: i64) -> Result<(), Errno> {
        if HAS_KERNELINFO {
            self.abi.store(self.word(2), number).map_err(|_| Errno::EINVAL)?;
        }
        Ok(())
    }

    /// Reads the status word back; -1 also when it cannot be read.
    pub fn fetch_status(self) -> i64 {
        self.abi.fetch(self.word(0))
    }

    /// Reads the error word back; -1 also when it cannot be read.
    pub fn fetch_error(self) -> i64 {
        self.abi.fetch(self.word(1))
    }

    /// Copies the aiocb in.
    ///
    /// # Errors
    /// EFAULT.
    pub fn copyin(self) -> Result<Aiocb, Errno> {
        Ok(match self.abi {
            Abi::Native => {
                let raw: sys::aiocb = self.at.copyin()?;
                Aiocb {
                    fd: raw.aio_fildes,
                    offset: raw.aio_offset,
                    buffer: UserPtr::new(raw.aio_buf as u64),
                    nbytes: raw.aio_nbytes,
                    opcode: raw.aio_lio_opcode,
                    knows_vectors: true,
                    sigevent: Ok(Sigevent::native(&raw.aio_sigevent)),
                }
            }
            Abi::FreeBsd6 => {
                let raw: OldAiocb = self.at.copyin()?;
                Aiocb {
                    fd: raw.fildes,
                    offset: raw.offset,
                    buffer: UserPtr::new(raw.buf),
                    nbytes: raw.nbytes as usize,
                    opcode: raw.lio_opcode,
                    knows_vectors: false,
                    sigevent: Sigevent::old(&raw.sigevent),
                }
            }
            Abi::Bits32 => {
                let raw: Aiocb32 = self.at.copyin()?;
                Aiocb {
                    fd: raw.fildes,
                    offset: offset32(raw.offset),
                    buffer: UserPtr::new(u64::from(raw.buf)),
                    nbytes: raw.nbytes as usize,
                    opcode: raw.lio_opcode,
                    knows_vectors: true,
                    sigevent: Sigevent::bits32(&raw.sigevent),
                }
            }
            Abi::FreeBsd6Bits32 => {
                let raw: OldAiocb32 = self.at.copyin()?;
                Aiocb {
                    fd: raw.fildes,
                    offset: offset32(raw.offset),
                    buffer: UserPtr::new(u64::from(raw.buf)),
                    nbytes: raw.nbytes as usize,
                    opcode: raw.lio_opcode,
                    knows_vectors: false,
                    sigevent: Sigevent::old32(&raw.sigevent),
                }
            }
        })
    }
}

fn offset32([low, high]: [u32; 2]) -> i64 {
    (u64::from(low) | u64::from(high) << 32).cast_signed()
}

impl Aiocb {
    /// The number of iovecs, as the kernel's type for it has it.
    pub fn iovcnt(&self) -> u32 {
        self.nbytes as u32
    }

    /// Whether an entry of a list has a vector, whatever else its opcode is.
    pub fn is_opcode_vectored(&self) -> bool {
        self.opcode.cast_unsigned() & sys::LIO_VECTORED != 0 && self.knows_vectors
    }

    /// Whether an entry of a list is to use the file's own offset.
    pub fn is_at_file_offset(&self) -> bool {
        self.opcode.cast_unsigned() & sys::AIO_RS_LIO_FOFFSET != 0
    }

    /// What an entry of a list asks for.
    ///
    /// # Errors
    /// EINVAL.
    pub fn listed(&self) -> Result<Opcode, Errno> {
        Ok(match self.opcode.cast_unsigned() & !sys::AIO_RS_LIO_FOFFSET {
            sys::LIO_NOP => Opcode::Nop,
            sys::LIO_READ => Opcode::Read,
            sys::LIO_WRITE => Opcode::Write,
            sys::LIO_READV if self.knows_vectors => Opcode::Readv,
            sys::LIO_WRITEV if self.knows_vectors => Opcode::Writev,
            _ => return Err(Errno::EINVAL),
        })
    }
}

/// What an entry of a list may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Nop,
    Read,
    Write,
    Readv,
    Writev,
}

/// FreeBSD 15 does not store a number any more.
const HAS_KERNELINFO: bool = sys::FREEBSD_VERSION < 1_500_000;
