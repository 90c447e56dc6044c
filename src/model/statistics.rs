// SPDX-License-Identifier: BSD-2-Clause
//! What requests are counted by: their class, why they failed, how long they took.

use super::Errno;

/// What a request is counted as: by the file where that decides how it is done, else by what is
/// asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Read,
    Write,
    /// aio_readv(2) and aio_writev(2).
    Vectored,
    /// aio_fsync(2).
    Sync,
    /// aio_mlock(2).
    Mlock,
    /// A transfer from or to a socket.
    Socket,
    /// A transfer from or to a disk device.
    Disk,
}

impl Class {
    /// All there are, in the order they are shown.
    pub const ALL: [Class; 7] = [
        Class::Read,
        Class::Write,
        Class::Vectored,
        Class::Sync,
        Class::Mlock,
        Class::Socket,
        Class::Disk,
    ];
}

/// Why a request failed, by what is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A limit, or nothing to be had without waiting: EAGAIN.
    Again,
    /// The medium or its driver: EIO, ENXIO, ENODEV, EROFS, ESTALE.
    Device,
    /// No room: ENOSPC, EDQUOT, EFBIG.
    Space,
    /// The process's memory: EFAULT, ENOMEM.
    Memory,
    /// Rights or descriptor: EPERM, EACCES, EBADF, ENOTCAPABLE.
    Access,
    /// What was asked for: EINVAL, EOPNOTSUPP, ENOTSUP, EISDIR, EOVERFLOW.
    Argument,
    /// The other end: EPIPE, ECONNRESET, ECONNABORTED, ENOTCONN, ESHUTDOWN, ETIMEDOUT, EHOSTUNREACH.
    Peer,
    /// EINTR.
    Interrupted,
    Other,
}

impl Failure {
    /// All there are, in the order they are shown.
    pub const ALL: [Failure; 9] = [
        Failure::Again,
        Failure::Device,
        Failure::Space,
        Failure::Memory,
        Failure::Access,
        Failure::Argument,
        Failure::Peer,
        Failure::Interrupted,
        Failure::Other,
    ];

    /// The class of an error number.
    pub fn of(error: Errno) -> Failure {
        match error.code() {
            35 => Failure::Again,
            5 | 6 | 19 | 30 | 70 => Failure::Device,
            27 | 28 | 69 => Failure::Space,
            12 | 14 => Failure::Memory,
            1 | 9 | 13 | 93 => Failure::Access,
            21 | 22 | 45 | 84 => Failure::Argument,
            32 | 53 | 54 | 57 | 58 | 60 | 65 => Failure::Peer,
            4 => Failure::Interrupted,
            _ => Failure::Other,
        }
    }
}

/// How many classes of time a histogram has.
pub const BUCKETS: usize = 24;

/// The class of a time in microseconds: 0 below 1, then `n` from 2^(n-1) to below 2^n, and the last
/// without an end (4.2 s and more).
pub fn bucket(microseconds: u64) -> usize {
    let bits = (u64::BITS - microseconds.leading_zeros()) as usize;
    bits.min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_one_bucket_and_they_are_in_order() {
        assert_eq!(bucket(0), 0);
        for n in 1..BUCKETS - 1 {
            let first = 1 << (n - 1);
            assert_eq!(bucket(first), n);
            assert_eq!(bucket(2 * first - 1), n);
        }
        assert_eq!(bucket(1 << (BUCKETS - 2)), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn every_error_the_engine_makes_has_the_class_that_is_documented() {
        let classes = [
            (Errno::EAGAIN, Failure::Again),
            (Errno::EIO, Failure::Device),
            (Errno::EFBIG, Failure::Space),
            (Errno::EFAULT, Failure::Memory),
            (Errno::EBADF, Failure::Access),
            (Errno::EINVAL, Failure::Argument),
            (Errno::EOPNOTSUPP, Failure::Argument),
            (Errno::EPIPE, Failure::Peer),
            (Errno::EINTR, Failure::Interrupted),
            (Errno::EBUSY, Failure::Other),
        ];
        for (error, class) in classes {
            assert_eq!(Failure::of(error), class, "{error:?}");
        }
    }

    #[test]
    fn positions_are_those_of_the_lists() {
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
        }
    }
}
