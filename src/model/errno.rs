// SPDX-License-Identifier: BSD-2-Clause
//! Error numbers as values, without loss: also the kernel-internal negative ones.
//!
//! The numbers are FreeBSD's; `kern/errno.rs` asserts each against the kernel's headers.

use core::num::NonZeroI32;

/// One of the kernel's error numbers; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(NonZeroI32);

impl Errno {
    /// Makes an errno of what a C function returned: `Ok` for 0.
    pub fn check(code: i32) -> Result<(), Errno> {
        match NonZeroI32::new(code) {
            Some(code) => Err(Errno(code)),
            None => Ok(()),
        }
    }

    /// The number, as C has it.
    pub const fn code(self) -> i32 {
        self.0.get()
    }
}

macro_rules! errnos {
    ($($name:ident = $value:expr;)*) => {
        impl Errno {
            $(pub const $name: Errno = Errno(NonZeroI32::new($value).unwrap());)*
        }

        /// Every name with its number, for the assertion against the kernel's headers.
        #[cfg(any(test, feature = "kernel"))]
        pub(crate) const ALL: &[(&str, i32)] = &[$((stringify!($name), $value),)*];
    };
}

errnos! {
    ERELOOKUP = -5;
    ERESTART = -1;
    EPERM = 1;
    EINTR = 4;
    EIO = 5;
    ENXIO = 6;
    EBADF = 9;
    ENOMEM = 12;
    EFAULT = 14;
    EBUSY = 16;
    EEXIST = 17;
    EINVAL = 22;
    EFBIG = 27;
    EPIPE = 32;
    EAGAIN = 35;
    EINPROGRESS = 36;
    EOPNOTSUPP = 45;
    EPROGMISMATCH = 75;
    ECANCELED = 85;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_success_and_every_number_survives() {
        assert_eq!(Errno::check(0), Ok(()));
        for &(name, value) in ALL {
            assert_eq!(Errno::check(value).unwrap_err().code(), value, "{name}");
        }
    }
}
