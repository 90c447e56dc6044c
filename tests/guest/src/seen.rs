// SPDX-License-Identifier: BSD-2-Clause
//! What the calls of AIO answered, as a set for each call: for transcripts, which compare engines and
//! kernels by more than whether a case holds.

use crate::errno::Errno;
use crate::mem::Region;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The calls: number and name. Those of FreeBSD 6 have the number of theirs.
const CALLS: [(u64, &str); 15] = [
    (255, "aio_read"),
    (256, "aio_write"),
    (257, "lio_listio"),
    (314, "aio_return"),
    (315, "aio_suspend"),
    (316, "aio_cancel"),
    (317, "aio_error"),
    (318, "oaio_read"),
    (319, "oaio_write"),
    (320, "olio_listio"),
    (359, "aio_waitcomplete"),
    (465, "aio_fsync"),
    (543, "aio_mlock"),
    (578, "aio_writev"),
    (579, "aio_readv"),
];

/// Two words for each call: a bit for each errno below [`ANSWERS`], and above it for each answer of
/// aio_cancel.
pub const BYTES: usize = CALLS.len() * 16;

/// Where answers begin that are no errnos.
const ANSWERS: usize = 112;

/// aio_cancel(2).
const CANCEL: u64 = 316;
/// aio_error(2), whose answer is an errno.
const ERROR: u64 = 317;

/// Address of the memory to note in; 0 for none.
static NOTES: AtomicUsize = AtomicUsize::new(0);

/// Notes from here on in memory that children share, [`BYTES`] of it.
pub fn watch(memory: &Region) {
    NOTES.store(memory.part(0, BYTES).addr(), Ordering::Relaxed);
}

fn notes() -> Option<Region> {
    match NOTES.load(Ordering::Relaxed) {
        0 => None,
        at => Some(Region::shared_at(at, BYTES)),
    }
}

/// The bit that an answer has.
fn bit(number: u64, result: crate::Result<usize>) -> Option<usize> {
    match (number, result) {
        (_, Err(Errno(errno))) => usize::try_from(errno).ok().filter(|&errno| errno < ANSWERS),
        // -1 is an address that cannot be read.
        (ERROR, Ok(errno)) => Some(errno).filter(|&errno| errno < ANSWERS),
        (CANCEL, Ok(answer)) => Some(ANSWERS + answer.min(127 - ANSWERS)),
        _ => None,
    }
}

/// Notes what a call answered.
pub(crate) fn note(number: u64, result: crate::Result<usize>) {
    let Some(call) = CALLS.iter().position(|&(its, _)| its == number) else { return };
    if let (Some(notes), Some(bit)) = (notes(), bit(number, result)) {
        notes.atomic(call * 16 + bit / 64 * 8).fetch_or(1 << (bit % 64), Ordering::Relaxed);
    }
}

/// Prints what was noted: ` saw=aio_read:EBADF,EINVAL;aio_cancel:=2`, or nothing.
pub struct Seen;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(notes) = notes() else { return Ok(()) };
        let mut before = " saw=";
        for (call, (_, name)) in CALLS.iter().enumerate() {
            let bits = [notes.word(call * 16), notes.word(call * 16 + 8)];
            let mut mark = ':';
            for bit in (0..128).filter(|bit| bits[bit / 64] >> (bit % 64) & 1 != 0) {
                if mark == ':' {
                    write!(f, "{before}{name}")?;
                    before = ";";
                }
                match bit {
                    0 => write!(f, "{mark}0")?,
                    answer if answer >= ANSWERS => write!(f, "{mark}={}", answer - ANSWERS)?,
                    errno => match Errno(errno as i32).name() {
                        Some(name) => write!(f, "{mark}{name}")?,
                        None => write!(f, "{mark}{errno}")?,
                    },
                }
                mark = ',';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn prints_each_answer_once() {
        let words = std::boxed::Box::leak(std::boxed::Box::new([0u64; BYTES / 8]));
        watch(&Region::shared_at(words.as_ptr() as usize, BYTES));
        assert_eq!(Seen.to_string(), "");
        for errno in [9, 22, 9] {
            note(255, Err(Errno(errno)));
        }
        note(255, Ok(7));
        note(1, Err(Errno(9)));
        note(CANCEL, Ok(2));
        note(ERROR, Ok(0));
        note(ERROR, Ok(85));
        note(ERROR, Ok(usize::MAX));
        note(579, Err(Errno(93)));
        let wanted =
            " saw=aio_read:EBADF,EINVAL;aio_cancel:=2;aio_error:0,ECANCELED;aio_readv:ENOTCAPABLE";
        assert_eq!(Seen.to_string(), wanted);
    }
}
