// SPDX-License-Identifier: BSD-2-Clause
//! Error numbers of FreeBSD, printed by name.

use core::fmt;

/// What a failed system call left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident = $value:literal),* $(,)?) => {
        $(
            #[doc = concat!("errno ", $value)]
            pub const $name: Errno = Errno($value);
        )*

        fn name(value: i32) -> Option<&'static str> {
            match value {
                $($value => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8,
    EBADF = 9, ECHILD = 10, EDEADLK = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, EBUSY = 16,
    EEXIST = 17, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENFILE = 23, EMFILE = 24,
    ENOTTY = 25, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, EROFS = 30, EPIPE = 32, EAGAIN = 35,
    EINPROGRESS = 36, ENOTSOCK = 38, EDESTADDRREQ = 39, EMSGSIZE = 40, EPROTONOSUPPORT = 43,
    EOPNOTSUPP = 45,
    ECONNRESET = 54, ENOBUFS = 55, ENOTCONN = 57, ETIMEDOUT = 60, ECONNREFUSED = 61,
    ENOTEMPTY = 66, ENOSYS = 78, EOVERFLOW = 84, ECANCELED = 85, ENOTCAPABLE = 93, ECAPMODE = 94, EINTEGRITY = 97,
}

impl Errno {
    /// Its name, where it has one here.
    pub fn name(self) -> Option<&'static str> {
        name(self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn prints_names_and_numbers() {
        assert_eq!(ECANCELED.to_string(), "ECANCELED");
        assert_eq!(Errno(1234).to_string(), "errno 1234");
    }
}
