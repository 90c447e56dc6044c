// SPDX-License-Identifier: BSD-2-Clause
//! Asserts that the model's error numbers are the kernel's.

use sys_bindings as sys;

use crate::model::Errno;

macro_rules! same {
    ($($name:ident)*) => {
        $(const _: () = assert!(Errno::$name.code() as i64 == sys::$name as i64);)*
        /// As many as the model has, or one is not asserted.
        const _: () = assert!(crate::model::errno::ALL.len() == [$(stringify!($name)),*].len());
    };
}

same! {
    ERELOOKUP ERESTART EPERM EINTR EIO ENXIO EBADF ENOMEM EFAULT EBUSY EEXIST EINVAL EFBIG EPIPE EAGAIN EINPROGRESS EOPNOTSUPP
    EPROGMISMATCH ECANCELED
}
