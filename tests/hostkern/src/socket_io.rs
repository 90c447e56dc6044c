// SPDX-License-Identifier: BSD-2-Clause
//! Sending and receiving: sosend(9) and soreceive(9), with what each protocol does differently.
//!
//! Whoever transfers has the half's I/O lock, for as long as it waits too; so does a worker of the
//! modules, who only does not wait for data or room. User memory is touched with nothing locked.

use std::collections::VecDeque;

use crate::errno::*;
use crate::socket::{self, CLUSTER, Family, Kind, LONGEST_DATAGRAM, MBUF, So, Which, with};
use crate::{file, sched, socket_net, socket_tasks, sys};

/// Bytes that are copied at once: what a cluster has, or now and then less.
fn piece() -> usize {
    if sched::random(8) == 0 {
        1 + sched::random(u64::from(CLUSTER)) as usize
    } else {
        CLUSTER as usize
    }
}

/// uiomove(9) to the uio. Returns what was moved.
fn copy_out(uio: &mut sys::uio, bytes: &[u8]) -> Result<(), Errno> {
    sched::may_sleep("uiomove");
    sched::point();
    let mut done = 0;
    let resid = uio.uio_resid;
    uio.uio_resid = resid.min(bytes.len() as isize);
    let left = resid - uio.uio_resid;
    let result = file::move_bytes(uio, false, &mut |host, len, _| {
        let count = len.min(bytes.len() - done);
        // SAFETY: a run of mapped memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), host, count) };
        done += count;
        Ok(count)
    });
    uio.uio_resid += left;
    result
}

/// m_uiotombuf: takes so many bytes off the uio.
fn copy_in(uio: &mut sys::uio, len: usize) -> Result<Vec<u8>, Errno> {
    sched::may_sleep("uiomove");
    sched::point();
    let mut bytes = Vec::with_capacity(len);
    let resid = uio.uio_resid;
    uio.uio_resid = resid.min(len as isize);
    let left = resid - uio.uio_resid;
    let result = file::move_bytes(uio, true, &mut |host, count, _| {
        // SAFETY: a run of mapped memory.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(host, count) });
        Ok(count)
    });
    uio.uio_resid += left;
    result.map(|()| bytes)
}

/// What a transfer waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// What the socket's own mode says.
    Socket,
    /// For its turn, as others transfer, but not for the peer (MSG_NBIO).
    Turn,
    /// For nothing (MSG_DONTWAIT).
    None,
}

/// Takes a half's I/O lock.
///
/// # Errors
/// EAGAIN: another has it, and there is no waiting. A signal's.
fn take_turn(so: So, which: Which, patience: Patience) -> Result<(), Errno> {
    if patience == Patience::None && !socket::io_is_free(so, which) {
        return Err(EAGAIN);
    }
    socket::io_lock(so, which, true)
}

/// Whether a transfer may wait for the peer.
fn waits(so: So, patience: Patience) -> bool {
    patience == Patience::Socket && socket::state(so) & sys::SS_NBIO == 0
}

/// One more message received, or sent, by the running thread.
fn charge(which: Which) {
    // SAFETY: the running thread's own counts.
    unsafe {
        let usage = &mut (*sched::curthread()).td_ru;
        match which {
            Which::Receive => usage.ru_msgrcv += 1,
            Which::Send => usage.ru_msgsnd += 1,
        }
    }
}

/// soreceive.
///
/// # Errors
/// EAGAIN, what was left on the socket, EFAULT, ENOTCONN, a signal's.
pub fn receive(so: So, uio: &mut sys::uio, patience: Patience) -> Result<(), Errno> {
    sched::may_sleep("soreceive");
    let (family, kind) = with(so, |inner| (inner.family, inner.kind));
    if family == Family::Inet && kind == Kind::Datagram {
        // soreceive_dgram has no I/O lock.
        return receive_message(so, uio, patience);
    }
    take_turn(so, Which::Receive, patience)?;
    let result = match kind {
        Kind::Stream => receive_stream(so, uio, patience),
        _ => receive_message(so, uio, patience),
    };
    socket::io_unlock(so, Which::Receive);
    socket_tasks::neighbour(so);
    result
}

/// What a receiver that finds too little does: waits (`None`), or ends. The half is locked, and
/// unlocked when it ends.
fn find_nothing(so: So, uio: &sys::uio, patience: Patience) -> Option<Result<(), Errno>> {
    let connected = sys::SS_ISCONNECTING
        | sys::SS_ISCONNECTED
        | sys::SS_ISDISCONNECTING
        | sys::SS_ISDISCONNECTED;
    let end = if let Some(error) = socket::take_error(so) {
        Err(error)
    } else if socket::is_shut(so, Which::Receive) {
        Ok(())
    } else if socket::state(so) & connected == 0
        && socket::flags_of_protocol(so) & sys::PR_CONNREQUIRED != 0
    {
        Err(ENOTCONN)
    } else if uio.uio_resid == 0 {
        Ok(())
    } else if !waits(so, patience) {
        Err(EAGAIN)
    } else {
        match socket::wait(so, Which::Receive) {
            Ok(()) => return None,
            Err(error) => Err(error),
        }
    };
    socket::unlock(so, Which::Receive);
    Some(end)
}

fn receive_stream(so: So, uio: &mut sys::uio, patience: Patience) -> Result<(), Errno> {
    let wanted = uio.uio_resid;
    loop {
        socket::lock(so, Which::Receive);
        let sb = socket::buf(so, Which::Receive);
        let (there, low) = (sb.sb_acc, sb.sb_lowat);
        let too_little =
            patience != Patience::None && i64::from(there) < uio.uio_resid as i64 && there < low;
        let ends = socket::has_error(so) || socket::is_shut(so, Which::Receive);
        if there == 0 {
            match find_nothing(so, uio, patience) {
                Some(end) => return end,
                None => {
                    socket::unlock(so, Which::Receive);
                    continue;
                }
            }
        }
        if too_little && !ends {
            let end = if !waits(so, patience) {
                Some(EAGAIN)
            } else {
                socket::wait(so, Which::Receive).err()
            };
            socket::unlock(so, Which::Receive);
            match end {
                Some(error) => return Err(error),
                None => continue,
            }
        }
        charge(Which::Receive);
        let before = uio.uio_resid;
        while uio.uio_resid > 0 && socket::buf(so, Which::Receive).sb_acc > 0 {
            let most = piece().min(uio.uio_resid as usize);
            let bytes: Vec<u8> = with(so, |inner| inner.bytes.iter().take(most).copied().collect());
            socket::unlock(so, Which::Receive);
            let copied = copy_out(uio, &bytes);
            socket::lock(so, Which::Receive);
            if let Err(error) = copied {
                socket::unlock(so, Which::Receive);
                return Err(error);
            }
            with(so, |inner| inner.bytes.drain(..bytes.len()).for_each(drop));
            let sb = socket::buf(so, Which::Receive);
            sb.sb_acc -= bytes.len() as u32;
            sb.sb_ccc -= bytes.len() as u32;
        }
        socket::unlock(so, Which::Receive);
        sched::point();
        socket_net::received(so);
        let moved = before != uio.uio_resid;
        if moved || wanted == 0 || socket::is_shut(so, Which::Receive) {
            return Ok(());
        }
    }
}

fn receive_message(so: So, uio: &mut sys::uio, patience: Patience) -> Result<(), Errno> {
    socket::lock(so, Which::Receive);
    let record = loop {
        // What is not read of it is gone, also when reading fails.
        if let Some(record) = with(so, |inner| inner.records.pop_front()) {
            break record;
        }
        if let Some(end) = find_nothing(so, uio, patience) {
            return end;
        }
    };
    charge(Which::Receive);
    let sb = socket::buf(so, Which::Receive);
    sb.sb_acc -= record.bytes;
    sb.sb_ccc -= record.bytes;
    sb.sb_ctl -= record.control;
    sb.sb_mbcnt -= record.memory;
    socket::unlock(so, Which::Receive);
    let count = record.data.len().min(uio.uio_resid as usize);
    let result = copy_out(uio, &record.data[..count]);
    sched::point();
    if result.is_ok() && socket::flags_of_protocol(so) & sys::PR_WANTRCVD != 0 {
        socket_net::received(so);
    }
    result
}

/// sosend.
///
/// # Errors
/// EAGAIN, EPIPE, what was left on the socket, EMSGSIZE, ENOBUFS, EFAULT, ENOTCONN, EDESTADDRREQ, a
/// signal's.
pub fn send(so: So, uio: &mut sys::uio, patience: Patience) -> Result<(), Errno> {
    sched::may_sleep("sosend");
    let (family, kind) = with(so, |inner| (inner.family, inner.kind));
    match (family, kind) {
        (Family::Local, Kind::Datagram) => send_local_datagram(so, uio),
        (Family::Inet, Kind::Datagram) => send_inet_datagram(so, uio),
        _ => {
            charge(Which::Send);
            take_turn(so, Which::Send, patience)?;
            let result = send_generic(so, uio, patience);
            socket::io_unlock(so, Which::Send);
            socket_tasks::neighbour(so);
            result
        }
    }
}

/// What is asked before anything is sent. The half is locked.
fn may_send(so: So) -> Result<(), Errno> {
    if socket::is_shut(so, Which::Send) {
        return Err(EPIPE);
    }
    if let Some(error) = socket::take_error(so) {
        return Err(error);
    }
    if socket::state(so) & sys::SS_ISCONNECTED == 0 {
        let needs = socket::flags_of_protocol(so) & sys::PR_CONNREQUIRED != 0;
        return Err(if needs { ENOTCONN } else { EDESTADDRREQ });
    }
    Ok(())
}

fn send_generic(so: So, uio: &mut sys::uio, patience: Patience) -> Result<(), Errno> {
    let atomic = socket::flags_of_protocol(so) & sys::PR_ATOMIC != 0;
    loop {
        socket::lock(so, Which::Send);
        if let Err(error) = may_send(so) {
            socket::unlock(so, Which::Send);
            return Err(error);
        }
        let resid = uio.uio_resid as i64;
        let (high, low) = {
            let sb = socket::buf(so, Which::Send);
            (i64::from(sb.sb_hiwat), i64::from(sb.sb_lowat))
        };
        let space = socket::space(so, Which::Send);
        if atomic && resid > high {
            socket::unlock(so, Which::Send);
            return Err(EMSGSIZE);
        }
        if space < resid && (atomic || space < low) {
            let end = if !waits(so, patience) {
                Some(EAGAIN)
            } else {
                socket::wait(so, Which::Send).err()
            };
            socket::unlock(so, Which::Send);
            match end {
                // Later kernels have taken a message off the uio before they look for room.
                Some(EAGAIN) if atomic && patience != Patience::Socket && sched::random(2) == 0 => {
                    let _ = copy_in(uio, resid as usize);
                    return Err(EAGAIN);
                }
                Some(error) => return Err(error),
                None => continue,
            }
        }
        socket::unlock(so, Which::Send);
        let bytes = copy_in(uio, if atomic { resid } else { space.min(resid) } as usize)?;
        sched::point();
        socket_net::send(so, bytes)?;
        if uio.uio_resid == 0 {
            return Ok(());
        }
    }
}

/// Memory a message takes: its head, and what its bytes are in.
pub fn memory_of(len: usize) -> u32 {
    let data =
        if len <= 168 { MBUF } else { (MBUF + CLUSTER) * len.div_ceil(CLUSTER as usize) as u32 };
    MBUF + data
}

/// uipc_sosend_dgram: it never waits.
fn send_local_datagram(so: So, uio: &mut sys::uio) -> Result<(), Errno> {
    if uio.uio_resid > LONGEST_DATAGRAM {
        return Err(EMSGSIZE);
    }
    let len = uio.uio_resid as usize;
    let bytes = copy_in(uio, len)?;
    take_turn(so, Which::Send, Patience::Turn)?;
    socket::lock(so, Which::Send);
    let may = may_send(so);
    socket::unlock(so, Which::Send);
    let result = may.and_then(|()| {
        sched::point();
        let result = socket_net::send_datagram(so, bytes);
        if result != Err(ENOTCONN) {
            charge(Which::Send);
        }
        result
    });
    socket::io_unlock(so, Which::Send);
    result
}

/// sosend_dgram: whether it arrives is another matter.
fn send_inet_datagram(so: So, uio: &mut sys::uio) -> Result<(), Errno> {
    charge(Which::Send);
    socket::lock(so, Which::Send);
    let may = may_send(so);
    let space = socket::space(so, Which::Send);
    socket::unlock(so, Which::Send);
    may?;
    if uio.uio_resid as i64 > space {
        return Err(EMSGSIZE);
    }
    let len = uio.uio_resid as usize;
    let bytes = copy_in(uio, len)?;
    socket_net::send_packet(so, bytes);
    Ok(())
}

/// What is unread of a stream, for a protocol that adds to it. The half is locked.
pub fn append(so: So, bytes: &[u8]) {
    with(so, |inner| {
        let to: &mut VecDeque<u8> = &mut inner.bytes;
        to.extend(bytes);
    });
    let sb = socket::buf(so, Which::Receive);
    sb.sb_acc += bytes.len() as u32;
    sb.sb_ccc += bytes.len() as u32;
}
