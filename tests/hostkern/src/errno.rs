// SPDX-License-Identifier: BSD-2-Clause
//! FreeBSD's error numbers, and the host's turned into them.

use std::ffi::c_int;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub c_int);

macro_rules! errnos {
    ($($name:ident = $value:literal)*) => { $(pub const $name: Errno = Errno($value);)* };
}

errnos! {
    EPERM = 1 ENOENT = 2 ESRCH = 3 EINTR = 4 EIO = 5 ENXIO = 6 ENOEXEC = 8 EBADF = 9 ECHILD = 10
    ENOMEM = 12 EACCES = 13 EFAULT = 14 EBUSY = 16 EEXIST = 17 ENOTDIR = 20 EISDIR = 21 EINVAL = 22
    EMFILE = 24 ENOTTY = 25 EFBIG = 27 ESPIPE = 29 EPIPE = 32 EAGAIN = 35 EINPROGRESS = 36
    EALREADY = 37 ENOTSOCK = 38 EDESTADDRREQ = 39 EMSGSIZE = 40 EPROTOTYPE = 41 ENOPROTOOPT = 42
    EPROTONOSUPPORT = 43 EOPNOTSUPP = 45 EAFNOSUPPORT = 47 EADDRINUSE = 48 ECONNABORTED = 53
    ECONNRESET = 54 ENOBUFS = 55 EISCONN = 56 ENOTCONN = 57 ECONNREFUSED = 61 ENAMETOOLONG = 63
    ENOSYS = 78
    ENOTCAPABLE = 93 ECAPMODE = 94 ERESTART = -1 EJUSTRETURN = -2
}

/// The host's error, in FreeBSD's numbers. Up to 34 they are the same but for one.
pub fn of_host(error: &std::io::Error) -> Errno {
    Errno(match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::EAGAIN => 35,
        libc::EDEADLK => 11,
        libc::ENAMETOOLONG => 63,
        libc::ENOSYS => 78,
        libc::ENOTEMPTY => 66,
        libc::ELOOP => 62,
        libc::EOVERFLOW => 84,
        libc::EOPNOTSUPP => 45,
        libc::EDQUOT => 69,
        libc::ESTALE => 70,
        code if code <= 34 => code,
        _ => 5,
    })
}

pub fn last() -> Errno {
    of_host(&std::io::Error::last_os_error())
}

/// An errno as C has it.
pub fn code(result: Result<(), Errno>) -> c_int {
    result.map_or_else(|error| error.0, |()| 0)
}
