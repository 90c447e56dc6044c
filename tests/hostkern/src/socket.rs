// SPDX-License-Identifier: BSD-2-Clause
//! Sockets: struct socket with its locks, buffers and references as the modules see them, what is in
//! the buffers, and who is told when that changes.
//!
//! The locks are the modules' kind, so holding and order are checked. What they protect is changed
//! between two scheduling points all the same. None of two sockets is ever locked under the other's.
//!
//! A buffer's counters and flags are in its struct sockbuf; its bytes are in ours. A socket that
//! listens has no buffers: their memory is overwritten, as the kernel uses it for something else.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_int, c_void};

use crate::errno::*;
use crate::sched::{Tid, Woken};
use crate::state::Held;
use crate::{kqueue, mem, module, proc, report, sched, socket_net, socket_tasks, sys};

pub type So = *mut sys::socket;

/// One half of a socket, as the kernel numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Receive = 0,
    Send = 1,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    Local,
    Inet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Stream,
    Datagram,
    Packet,
}

/// A message in a receive buffer.
pub struct Record {
    pub data: Vec<u8>,
    /// The sender, if it still counts what it has sent.
    pub from: usize,
    /// What it takes of the receiver's counters: bytes, of these beside the data, and memory.
    pub bytes: u32,
    pub control: u32,
    pub memory: u32,
}

/// What is behind a struct socket.
pub struct Inner {
    pub family: Family,
    pub kind: Kind,
    /// What a stream has received.
    pub bytes: VecDeque<u8>,
    /// What anything else has.
    pub records: VecDeque<Record>,
    /// What TCP has to send.
    pub unsent: VecDeque<u8>,
    pub peer: So,
    /// Own port and the peer's, 0: none.
    pub port: u16,
    pub peer_port: u16,
    /// Device and inode of a local name.
    pub path: Option<(u64, u64)>,
    /// Of a socket that listens: connections nobody has accepted, and how many there may be.
    pub waiting: VecDeque<So>,
    pub backlog: usize,
    /// Who is in the middle of receiving and sending: the I/O locks.
    io: [Option<Tid>; 2],
    /// How many wait for that.
    io_waits: [u32; 2],
    /// No file has it any more.
    pub closed: bool,
    /// TCP: nothing will follow what is unsent; the peer knows.
    pub fin: bool,
    pub fin_sent: bool,
    /// TCP keeps a reference until what is unsent has gone.
    pub kept: bool,
    /// It is in the network's queue.
    pub queued: bool,
}

pub static SOCKETS: Held<BTreeMap<usize, Inner>> = Held::new(BTreeMap::new());

/// The protocols' tables, of which only flags are looked at.
static PROTOCOLS: Held<BTreeMap<u32, usize>> = Held::new(BTreeMap::new());

/// The most a buffer may be said to take, in memory.
const MEMORY_MAX: u32 = 2 << 20;
/// struct mbuf, and a cluster.
pub const MBUF: u32 = 256;
pub const CLUSTER: u32 = 2048;

pub fn with<R>(so: So, action: impl FnOnce(&mut Inner) -> R) -> R {
    SOCKETS.with(|all| match all.get_mut(&(so as usize)) {
        Some(inner) => action(inner),
        None => report::panic(&format!("{so:p} is no socket, or no longer one")),
    })
}

/// Whether it accepts connections.
pub fn is_listening(so: So) -> bool {
    // SAFETY: the caller has a reference.
    unsafe { (*so).so_options as u32 & sys::SO_ACCEPTCONN != 0 }
}

/// A buffer; it must not be kept over a scheduling point.
pub fn buf(so: So, which: Which) -> &'static mut sys::sockbuf {
    if is_listening(so) {
        report::panic("a buffer of a socket that listens");
    }
    // SAFETY: the caller has a reference, and only one thread runs.
    unsafe {
        let buffers = &mut (*so).__bindgen_anon_1.__bindgen_anon_1;
        match which {
            Which::Receive => &mut buffers.so_rcv,
            Which::Send => &mut buffers.so_snd,
        }
    }
}

fn word(so: So, which: Which) -> *mut usize {
    // SAFETY: the caller has a reference; no more than an address is made.
    unsafe {
        match which {
            Which::Receive => &raw mut (*so).so_rcv_mtx.mtx_lock,
            Which::Send => &raw mut (*so).so_snd_mtx.mtx_lock,
        }
    }
}

fn own_word(so: So) -> *mut usize {
    // SAFETY: as above.
    unsafe { &raw mut (*so).so_lock.mtx_lock }
}

/// SOCK_BUF_LOCK.
pub fn lock(so: So, which: Which) {
    sched::mtx_lock(word(so, which));
}

pub fn unlock(so: So, which: Which) {
    sched::mtx_unlock(word(so, which));
}

pub fn is_locked(so: So, which: Which) -> bool {
    sched::mtx_owned(word(so, which))
}

/// SOCK_LOCK.
pub fn lock_socket(so: So) {
    sched::mtx_lock(own_word(so));
}

pub fn unlock_socket(so: So) {
    sched::mtx_unlock(own_word(so));
}

pub fn is_socket_locked(so: So) -> bool {
    sched::mtx_owned(own_word(so))
}

pub fn state(so: So) -> u32 {
    // SAFETY: the caller has a reference.
    unsafe { (*so).so_state as u16 as u32 }
}

pub fn set_state(so: So, set: u32, clear: u32) {
    // SAFETY: as above.
    unsafe { (*so).so_state = ((state(so) | set) & !clear) as i16 }
}

pub fn has_flag(so: So, which: Which, flag: u32) -> bool {
    buf(so, which).sb_flags as u16 as u32 & flag != 0
}

pub fn set_flag(so: So, which: Which, flag: u32) {
    buf(so, which).sb_flags |= flag as u16 as i16;
}

pub fn clear_flag(so: So, which: Which, flag: u32) {
    buf(so, which).sb_flags &= !(flag as u16 as i16);
}

/// Whether that half is shut down (SBS_CANTSENDMORE, SBS_CANTRCVMORE).
pub fn is_shut(so: So, which: Which) -> bool {
    let flag = match which {
        Which::Receive => sys::SBS_CANTRCVMORE,
        Which::Send => sys::SBS_CANTSENDMORE,
    };
    buf(so, which).sb_state as u32 & flag != 0
}

/// Takes the error that was left on the socket.
pub fn take_error(so: So) -> Option<Errno> {
    // SAFETY: the caller has a reference.
    let error = unsafe { std::mem::take(&mut (*so).so_error) };
    (error != 0).then_some(Errno(c_int::from(error)))
}

pub fn has_error(so: So) -> bool {
    // SAFETY: as above.
    unsafe { (*so).so_error != 0 }
}

pub fn set_error(so: So, error: Errno) {
    // SAFETY: as above.
    unsafe { (*so).so_error = error.0 as u16 }
}

pub fn flags_of_protocol(so: So) -> u32 {
    // SAFETY: a socket's protocol is set when it is made.
    unsafe { (*(*so).so_proto).pr_flags as u16 as u32 }
}

/// Room in a buffer: sbspace.
pub fn space(so: So, which: Which) -> i64 {
    let sb = buf(so, which);
    if sb.sb_flags as u16 as u32 & sys::SB_STOP != 0 {
        return 0;
    }
    let bytes = i64::from(sb.sb_hiwat) - i64::from(sb.sb_ccc);
    bytes.min(i64::from(sb.sb_mbmax) - i64::from(sb.sb_mbcnt))
}

/// soreadable: data from the low-water mark on, an error, or the end.
pub fn is_readable(so: So) -> bool {
    if is_listening(so) {
        return with(so, |inner| !inner.waiting.is_empty()) || has_error(so);
    }
    let sb = buf(so, Which::Receive);
    sb.sb_acc >= sb.sb_lowat || has_error(so) || is_shut(so, Which::Receive)
}

/// sowriteable.
pub fn is_writable(so: So) -> bool {
    if is_listening(so) {
        return false;
    }
    let connected =
        state(so) & sys::SS_ISCONNECTED != 0 || flags_of_protocol(so) & sys::PR_CONNREQUIRED == 0;
    let low = i64::from(buf(so, Which::Send).sb_lowat);
    space(so, Which::Send) >= low && connected || is_shut(so, Which::Send) || has_error(so)
}

/// Takes a reference: soref.
pub fn hold(so: So) -> So {
    // SAFETY: somebody has a reference.
    unsafe {
        if (*so).so_count == 0 || (*so).so_count > 1 << 20 {
            report::panic(&format!("a socket with {} references is referenced", (*so).so_count));
        }
        (*so).so_count += 1;
    }
    so
}

/// sorele.
pub fn release(so: So) {
    lock_socket(so);
    release_locked(so);
}

/// sorele_locked: unlocks.
pub fn release_locked(so: So) {
    if !is_socket_locked(so) {
        report::panic("sorele_locked without the socket's lock");
    }
    // SAFETY: the reference is the caller's.
    let left = unsafe {
        if (*so).so_count == 0 {
            report::panic("a socket without references is released");
        }
        (*so).so_count -= 1;
        (*so).so_count
    };
    unlock_socket(so);
    if left == 0 {
        free(so);
    }
}

/// sofree: the last reference is gone.
fn free(so: So) {
    socket_net::detach(so);
    // SAFETY: nobody else has a reference.
    unsafe {
        if !is_listening(so) {
            for which in [Which::Receive, Which::Send] {
                if buf(so, which).sb_aiotask.ta_pending != 0
                    || has_flag(so, which, sys::SB_AIO_RUNNING)
                {
                    report::panic("a socket is freed whose task has not ended");
                }
            }
        }
        sched::mtx_destroy(own_word(so));
        sched::mtx_destroy(word(so, Which::Receive));
        sched::mtx_destroy(word(so, Which::Send));
        proc::crfree((*so).so_cred);
    }
    SOCKETS.with(|all| all.remove(&(so as usize)));
    mem::free_object(so);
}

fn protocol(family: Family, kind: Kind) -> *mut sys::protosw {
    let flags = match (family, kind) {
        (Family::Local, Kind::Stream) => sys::PR_CONNREQUIRED | sys::PR_WANTRCVD | sys::PR_RIGHTS,
        (Family::Local, Kind::Datagram) => sys::PR_ATOMIC | sys::PR_ADDR | sys::PR_RIGHTS,
        (Family::Local, Kind::Packet) => {
            sys::PR_ADDR | sys::PR_ATOMIC | sys::PR_CONNREQUIRED | sys::PR_WANTRCVD | sys::PR_RIGHTS
        }
        (Family::Inet, Kind::Datagram) => sys::PR_ATOMIC | sys::PR_ADDR,
        (Family::Inet, _) => sys::PR_CONNREQUIRED | sys::PR_IMPLOPCL | sys::PR_WANTRCVD,
    };
    let key = flags | (family as u32) << 16;
    if let Some(at) = PROTOCOLS.with(|all| all.get(&key).copied()) {
        return at as *mut sys::protosw;
    }
    // SAFETY: integers and pointers, which may be null.
    let mut new: Box<sys::protosw> = unsafe { Box::new_zeroed().assume_init() };
    new.pr_flags = flags as i16;
    // Like the kernel's own, it is no allocation, and stays.
    let new = Box::into_raw(new);
    PROTOCOLS.with(|all| all.insert(key, new as usize));
    new
}

/// Bytes a buffer of each kind may have, sending and receiving, as FreeBSD has them.
fn spaces(family: Family, kind: Kind) -> (u32, u32) {
    match (family, kind) {
        (Family::Local, Kind::Datagram) => (16 << 10, 16 << 10),
        (Family::Local, _) => (8 << 10, 8 << 10),
        (Family::Inet, Kind::Datagram) => (9216, 42_080),
        (Family::Inet, _) => (32 << 10, 64 << 10),
    }
}

/// The longest datagram of the local domain.
pub const LONGEST_DATAGRAM: isize = 8 << 10;

/// socreate, with one reference.
pub fn create(family: Family, kind: Kind) -> So {
    let so: So = mem::new_object();
    let type_ = match kind {
        Kind::Stream => sys::SOCK_STREAM,
        Kind::Datagram => sys::SOCK_DGRAM,
        Kind::Packet => sys::SOCK_SEQPACKET,
    };
    // SAFETY: just made; the running thread has a credential.
    unsafe {
        (*so).so_count = 1;
        (*so).so_type = type_ as i16;
        (*so).so_proto = protocol(family, kind);
        (*so).so_cred = proc::crhold((*sched::curthread()).td_ucred);
    }
    for (at, name) in [
        (own_word(so), c"socket"),
        (word(so, Which::Receive), c"so_rcv"),
        (word(so, Which::Send), c"so_snd"),
    ] {
        sched::mtx_init(at, CStr::as_ptr(name));
    }
    let (send, receive) = spaces(family, kind);
    for (which, space, low, function) in
        [(Which::Receive, receive, 1, "soaio_rcv"), (Which::Send, send, CLUSTER, "soaio_snd")]
    {
        let mutex = word(so, which).wrapping_byte_sub(std::mem::offset_of!(sys::mtx, mtx_lock));
        let sb = buf(so, which);
        sb.sb_lowat = low;
        reserve(sb, space);
        // SAFETY: plain data, and a function of the kernel's whose type this is.
        unsafe {
            sb.__bindgen_anon_1.__bindgen_anon_1.sb_mtx = mutex.cast();
            sb.sb_aiojobq.tqh_last = &raw mut sb.sb_aiojobq.tqh_first;
            (&raw mut sb.sb_aiotask.ta_func).cast::<usize>().write(module::kernel_object(function));
        }
        sb.sb_aiotask.ta_context = so.cast();
        kqueue::socket_list_init(notes(so, which), so, which);
    }
    let inner = Inner {
        family,
        kind,
        bytes: VecDeque::new(),
        records: VecDeque::new(),
        unsent: VecDeque::new(),
        peer: std::ptr::null_mut(),
        port: 0,
        peer_port: 0,
        path: None,
        waiting: VecDeque::new(),
        backlog: 0,
        io: [None; 2],
        io_waits: [0; 2],
        closed: false,
        fin: false,
        fin_sent: false,
        kept: false,
        queued: false,
    };
    SOCKETS.with(|all| all.insert(so as usize, inner));
    so
}

/// Sets how much a buffer may have: sbreserve.
pub fn reserve(sb: &mut sys::sockbuf, bytes: u32) {
    sb.sb_hiwat = bytes;
    sb.sb_mbmax = bytes.saturating_mul(8).min(MEMORY_MAX);
    sb.sb_lowat = sb.sb_lowat.min(bytes);
}

/// The knotes of a half.
pub fn notes(so: So, which: Which) -> *mut sys::knlist {
    // SAFETY: the caller has a reference; no more than an address is made.
    unsafe {
        match which {
            Which::Receive => &raw mut (*so).so_rdsel.si_note,
            Which::Send => &raw mut (*so).so_wrsel.si_note,
        }
    }
}

/// Where threads wait for a half: odd, as all channels of ours.
fn chan(so: So, which: Which) -> u64 {
    (so as u64 + 8 * which as u64) | 1
}

/// Where they wait for a half to be free for another transfer.
fn io_chan(so: So, which: Which) -> u64 {
    (so as u64 + 16 + 8 * which as u64) | 1
}

/// Where they wait for the connection.
fn connection_chan(so: So) -> u64 {
    (so as u64 + 32) | 1
}

/// sowakeup: something changed. The half is locked, and unlocked in the end.
pub fn wakeup(so: So, which: Which) {
    if !is_locked(so, which) {
        report::panic("sowakeup without the buffer's lock");
    }
    clear_flag(so, which, sys::SB_WAIT | sys::SB_SEL);
    sched::wakeup(chan(so, which), false);
    kqueue::tell(notes(so, which), 0, sys::KNF_LISTLOCKED);
    if has_flag(so, which, sys::SB_AIO) {
        socket_tasks::wakeup(so, which);
    }
    unlock(so, which);
}

/// sbwait: waits for [`wakeup`], with the half unlocked meanwhile.
///
/// # Errors
/// A signal's.
pub fn wait(so: So, which: Which) -> Result<(), Errno> {
    set_flag(so, which, sys::SB_WAIT);
    let woken = sched::sleep(chan(so, which), true, "sbwait", None, || unlock(so, which));
    lock(so, which);
    match woken {
        Woken::Signal(errno) => Err(Errno(errno)),
        _ => Ok(()),
    }
}

/// Whether nobody has a half's I/O lock.
pub fn io_is_free(so: So, which: Which) -> bool {
    with(so, |inner| inner.io[which as usize].is_none())
}

/// soiolock: the right to receive or send. Waits for who has it, interruptibly.
///
/// # Errors
/// A signal's. ENOTCONN: it listens.
pub fn io_lock(so: So, which: Which, interruptible: bool) -> Result<(), Errno> {
    sched::may_sleep("soiolock");
    let me = sched::current();
    loop {
        let taken = with(so, |inner| match inner.io[which as usize] {
            Some(owner) if owner == me => report::panic("soiolock by its owner"),
            Some(_) => false,
            None => {
                inner.io[which as usize] = Some(me);
                true
            }
        });
        if taken {
            break;
        }
        with(so, |inner| inner.io_waits[which as usize] += 1);
        let woken = sched::sleep(io_chan(so, which), interruptible, "soiolk", None, || ());
        with(so, |inner| inner.io_waits[which as usize] -= 1);
        if let Woken::Signal(errno) = woken {
            return Err(Errno(errno));
        }
    }
    if is_listening(so) {
        io_unlock(so, which);
        return Err(ENOTCONN);
    }
    Ok(())
}

pub fn io_unlock(so: So, which: Which) {
    let me = sched::current();
    let (owner, waits) =
        with(so, |inner| (inner.io[which as usize].take(), inner.io_waits[which as usize]));
    if owner != Some(me) {
        report::panic("soiounlock by a thread that does not have it");
    }
    sched::wakeup(io_chan(so, which), false);
    // It is not handed over, but whoever takes it again and again must not have it for ever.
    if waits > 0 && sched::random(2) == 0 {
        sched::yield_now();
    }
}

/// socantsendmore and socantrcvmore.
pub fn shut(so: So, which: Which) {
    lock(so, which);
    let flag = match which {
        Which::Receive => sys::SBS_CANTRCVMORE,
        Which::Send => sys::SBS_CANTSENDMORE,
    };
    buf(so, which).sb_state |= flag as i16;
    wakeup(so, which);
}

/// soisconnected.
pub fn connected(so: So) {
    lock_socket(so);
    set_state(so, sys::SS_ISCONNECTED, sys::SS_ISCONNECTING | sys::SS_ISDISCONNECTING);
    unlock_socket(so);
    sched::wakeup(connection_chan(so), false);
    for which in [Which::Receive, Which::Send] {
        lock(so, which);
        wakeup(so, which);
    }
}

/// soisdisconnected.
pub fn disconnected(so: So) {
    lock_socket(so);
    let ends = sys::SS_ISCONNECTING | sys::SS_ISCONNECTED | sys::SS_ISDISCONNECTING;
    set_state(so, sys::SS_ISDISCONNECTED, ends);
    let listens = is_listening(so);
    unlock_socket(so);
    if !listens {
        shut(so, Which::Receive);
        lock(so, Which::Send);
        let dropped = with(so, |inner| std::mem::take(&mut inner.unsent).len());
        buf(so, Which::Send).sb_acc -= dropped as u32;
        buf(so, Which::Send).sb_ccc -= dropped as u32;
        buf(so, Which::Send).sb_state |= sys::SBS_CANTSENDMORE as i16;
        wakeup(so, Which::Send);
    }
    sched::wakeup(connection_chan(so), false);
}

/// Waits until a connection is made or refused.
///
/// # Errors
/// What became of it. EINTR: a signal; it goes on meanwhile.
pub fn wait_connected(so: So) -> Result<(), Errno> {
    while state(so) & sys::SS_ISCONNECTING != 0 && !has_error(so) {
        if let Woken::Signal(_) = sched::sleep(connection_chan(so), true, "connec", None, || ()) {
            return Err(EINTR);
        }
    }
    match take_error(so) {
        Some(error) => {
            set_state(so, 0, sys::SS_ISCONNECTING);
            Err(error)
        }
        None => Ok(()),
    }
}

/// Forgets what a half has received: sbrelease.
pub fn drop_received(so: So) {
    lock(so, Which::Receive);
    with(so, |inner| {
        inner.bytes.clear();
        inner.records.clear();
    });
    let sb = buf(so, Which::Receive);
    (sb.sb_acc, sb.sb_ccc, sb.sb_ctl, sb.sb_mbcnt) = (0, 0, 0, 0);
    unlock(so, Which::Receive);
}

/// shutdown(2): soshutdown.
///
/// # Errors
/// EINVAL, ENOTCONN.
pub fn shutdown(so: So, how: i32) -> Result<(), Errno> {
    if !(0..=2).contains(&how) {
        return Err(EINVAL);
    }
    let (receives, sends) = (how != 1, how != 0);
    let ends = sys::SS_ISCONNECTED | sys::SS_ISCONNECTING | sys::SS_ISDISCONNECTING;
    let is_connected = state(so) & ends != 0;
    if is_listening(so) {
        if receives {
            lock_socket(so);
            set_error(so, ECONNABORTED);
            unlock_socket(so);
            sched::wakeup(chan(so, Which::Receive), false);
        }
        return Err(ENOTCONN);
    }
    if !is_connected && with(so, |inner| inner.kind) != Kind::Datagram {
        return Err(ENOTCONN);
    }
    if receives {
        shut(so, Which::Receive);
        if io_lock(so, Which::Receive, false).is_ok() {
            drop_received(so);
            io_unlock(so, Which::Receive);
        }
    }
    if sends {
        socket_net::shutdown(so);
    }
    if is_connected { Ok(()) } else { Err(ENOTCONN) }
}

/// listen(2): solisten. Both halves must be idle, and no request may wait for them.
///
/// # Errors
/// EINVAL: connected, or requests wait. EAGAIN: somebody receives or sends.
pub fn listen(so: So, backlog: i32) -> Result<(), Errno> {
    socket_net::check_listen(so)?;
    lock_socket(so);
    let backlog = usize::try_from(backlog).map_or(128, |count| count.min(128));
    if is_listening(so) {
        with(so, |inner| inner.backlog = backlog);
        unlock_socket(so);
        return Ok(());
    }
    let ends = sys::SS_ISCONNECTED | sys::SS_ISCONNECTING | sys::SS_ISDISCONNECTING;
    let busy = with(so, |inner| inner.io.iter().any(Option::is_some));
    let refused = if state(so) & ends != 0 {
        Some(EINVAL)
    } else if busy {
        Some(EAGAIN)
    } else {
        None
    };
    if let Some(error) = refused {
        unlock_socket(so);
        return Err(error);
    }
    lock(so, Which::Send);
    lock(so, Which::Receive);
    let waits = sys::SB_AIO | sys::SB_AIO_RUNNING;
    let requests =
        [Which::Receive, Which::Send].into_iter().any(|which| has_flag(so, which, waits));
    if !requests {
        // SAFETY: the buffers' memory; what listens keeps its own data elsewhere here.
        unsafe {
            let buffers = &raw mut (*so).__bindgen_anon_1.__bindgen_anon_1;
            (&raw mut (*buffers).so_rcv).cast::<u8>().write_bytes(0xb5, size_of::<sys::sockbuf>());
            (&raw mut (*buffers).so_snd).cast::<u8>().write_bytes(0xb5, size_of::<sys::sockbuf>());
            (*so).so_options |= sys::SO_ACCEPTCONN as c_int;
        }
        with(so, |inner| inner.backlog = backlog);
    }
    unlock(so, Which::Receive);
    unlock(so, Which::Send);
    unlock_socket(so);
    if requests { Err(EINVAL) } else { Ok(()) }
}

/// A connection for a socket that listens, with one reference, which is the queue's; `None`: there
/// are too many.
pub fn new_connection(so: So) -> Option<So> {
    let (family, kind, full) =
        with(so, |inner| (inner.family, inner.kind, inner.waiting.len() > inner.backlog * 3 / 2));
    if full || !is_listening(so) {
        return None;
    }
    Some(create(family, kind))
}

/// Puts a connection into the queue of those that wait to be accepted, with its reference.
pub fn offer(so: So, new: So) {
    with(so, |inner| inner.waiting.push_back(new));
    sched::wakeup(chan(so, Which::Receive), false);
    lock_socket(so);
    kqueue::tell(notes(so, Which::Receive), 0, sys::KNF_LISTLOCKED);
    unlock_socket(so);
}

/// accept(2): the oldest connection, whose reference is the caller's.
///
/// # Errors
/// EINVAL: it does not listen. EAGAIN: there is none. A signal's.
pub fn accept(so: So) -> Result<So, Errno> {
    loop {
        if !is_listening(so) {
            return Err(EINVAL);
        }
        if let Some(error) = take_error(so) {
            return Err(error);
        }
        if let Some(new) = with(so, |inner| inner.waiting.pop_front()) {
            return Ok(new);
        }
        if state(so) & sys::SS_NBIO != 0 {
            return Err(EAGAIN);
        }
        if let Woken::Signal(errno) =
            sched::sleep(chan(so, Which::Receive), true, "accept", None, || ())
        {
            return Err(Errno(errno));
        }
    }
}

/// soclose: its file is gone.
pub fn close(so: So) {
    sched::may_sleep("soclose");
    socket_tasks::closes(so);
    let keep = socket_net::close(so);
    let waiting = with(so, |inner| {
        inner.closed = true;
        std::mem::take(&mut inner.waiting)
    });
    for new in waiting {
        socket_net::abort(new);
        release(new);
    }
    if !keep {
        release(so);
    }
}

/// Waits until a half is ready, at most until a moment; whether it is.
///
/// # Errors
/// A signal's.
pub fn poll_in(so: So, until: Option<i64>) -> Result<bool, Errno> {
    while !is_readable(so) {
        if !is_listening(so) {
            set_flag(so, Which::Receive, sys::SB_SEL);
        }
        match sched::sleep(chan(so, Which::Receive), true, "select", until, || ()) {
            Woken::Signal(errno) => return Err(Errno(errno)),
            Woken::Timeout => return Ok(is_readable(so)),
            Woken::Wakeup => {}
        }
    }
    Ok(true)
}

/// The lock of a half's knotes, which is another once the socket listens.
pub fn lock_notes(so: So, which: Which, take: bool) {
    let at = if is_listening(so) { own_word(so) } else { word(so, which) };
    if take { sched::mtx_lock(at) } else { sched::mtx_unlock(at) }
}

pub fn are_notes_locked(so: So, which: Which) -> bool {
    sched::mtx_owned(if is_listening(so) { own_word(so) } else { word(so, which) })
}

/// What EVFILT_READ and EVFILT_WRITE say of a half: ready, how much, whether it is the end.
pub fn event(so: So, which: Which) -> (bool, i64, bool) {
    if is_listening(so) {
        let count = with(so, |inner| inner.waiting.len());
        return (count > 0 && which == Which::Receive, count as i64, false);
    }
    let sb = buf(so, which);
    let end = is_shut(so, which);
    match which {
        Which::Receive => (is_readable(so), i64::from(sb.sb_acc - sb.sb_ctl), end),
        Which::Send => (is_writable(so), space(so, which).max(0), end),
    }
}

/// The socket of a file.
pub fn of(fp: *mut sys::file) -> Option<So> {
    // SAFETY: the caller has a reference; f_data of a socket's file is its socket.
    unsafe { ((*fp).f_type as u32 == sys::DTYPE_SOCKET).then(|| (*fp).f_data.cast()) }
}

/// Whether a broken connection sends no signal.
pub fn has_no_sigpipe(so: So) -> bool {
    // SAFETY: the caller has a reference.
    unsafe { (*so).so_options as u32 & sys::SO_NOSIGPIPE != 0 }
}

/// fcntl(2)'s O_NONBLOCK.
pub fn set_nonblocking(so: So, on: bool) {
    lock_socket(so);
    if on {
        set_state(so, sys::SS_NBIO, 0)
    } else {
        set_state(so, 0, sys::SS_NBIO)
    }
    unlock_socket(so);
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    let count = SOCKETS.with(|all| all.len());
    if count > 0 { vec![format!("{count} sockets are left")] } else { Vec::new() }
}

/// The socket a pointer of the modules' is.
pub fn from_module(so: *mut c_void) -> So {
    if SOCKETS.with(|all| !all.contains_key(&(so as usize))) {
        report::panic(&format!("{so:p}, which a module gives, is no socket, or no longer one"));
    }
    so.cast()
}
