// SPDX-License-Identifier: BSD-2-Clause
//! What is between two sockets: the local domain, where the sender does it all, and TCP and UDP over
//! a loopback interface, where a thread of the kernel moves what was sent, when its turn comes.
//!
//! A peer may go at any scheduling point: who looks at it takes a reference.

use std::collections::{BTreeMap, VecDeque};

use crate::errno::*;
use crate::socket::{self, Family, Kind, Record, SOCKETS, So, Which, with};
use crate::state::Held;
use crate::{proc, sched, socket_io, sys};

/// What the network's thread has to do. Each socket in it is referenced.
enum Work {
    /// There may be something to send, or room where it goes.
    Output(So),
    /// A connection is asked for.
    Connect(So),
    /// The connection is reset: this socket is told.
    Reset(So),
    /// From a socket, to a port.
    Packet(So, u16, Vec<u8>),
}

struct Network {
    queue: VecDeque<Work>,
    started: bool,
    stopping: bool,
    next_port: u16,
    /// Local names, by device and inode, and their sockets.
    paths: BTreeMap<(u64, u64), usize>,
}

static NETWORK: Held<Network> = Held::new(Network {
    queue: VecDeque::new(),
    started: false,
    stopping: false,
    next_port: 49_152,
    paths: BTreeMap::new(),
});

/// Where the network's thread waits: odd, as all channels of ours.
const QUEUE: u64 = 0x47 << 56 | 1;

/// Segments are of the loopback interface's size at most.
const SEGMENT: usize = 16_344;

fn start() {
    if NETWORK.with(|network| std::mem::replace(&mut network.started, true)) {
        return;
    }
    proc::start_kernel(|| {
        loop {
            match NETWORK.with(|network| (network.queue.pop_front(), network.stopping)) {
                (Some(work), _) => {
                    perform(work);
                    sched::point();
                }
                (None, true) if SOCKETS.with(|all| all.is_empty()) => break,
                (None, _) => {
                    sched::sleep(QUEUE, false, "netisr", None, || ());
                }
            }
        }
    });
}

/// Ends the network's thread, when no process is left.
pub fn stop() {
    NETWORK.with(|network| network.stopping = true);
    sched::wakeup(QUEUE, false);
}

fn put(work: Work) {
    start();
    NETWORK.with(|network| network.queue.push_back(work));
    sched::wakeup(QUEUE, false);
}

/// Has what is unsent looked at.
fn output(so: So) {
    if !with(so, |inner| std::mem::replace(&mut inner.queued, true)) {
        socket::hold(so);
        put(Work::Output(so));
    }
}

fn perform(work: Work) {
    match work {
        Work::Output(so) => {
            with(so, |inner| inner.queued = false);
            transmit(so);
            settle(so);
            socket::release(so);
        }
        Work::Connect(so) => {
            answer(so);
            socket::release(so);
        }
        Work::Reset(so) => {
            reset(so);
            socket::release(so);
        }
        Work::Packet(so, port, bytes) => {
            deliver(so, port, bytes);
            socket::release(so);
        }
    }
}

/// The peer, referenced.
fn peer_of(so: So) -> Option<So> {
    let peer = with(so, |inner| inner.peer);
    (!peer.is_null()).then(|| socket::hold(peer))
}

// TCP.

/// Takes a socket's connection away, with an error: tcp_drop.
fn reset(so: So) {
    if socket::state(so) & (sys::SS_ISCONNECTED | sys::SS_ISCONNECTING) == 0 {
        return;
    }
    cut(so);
    socket::set_error(so, ECONNRESET);
    socket::disconnected(so);
    settle(so);
}

/// Neither knows the other any more.
fn cut(so: So) {
    let peer = with(so, |inner| std::mem::replace(&mut inner.peer, std::ptr::null_mut()));
    if !peer.is_null() {
        with(peer, |inner| inner.peer = std::ptr::null_mut());
        settle(peer);
    }
}

/// Moves what is unsent to the peer, as far as that has room.
fn transmit(so: So) {
    while !socket::is_listening(so) && socket::state(so) & sys::SS_ISCONNECTED != 0 {
        let (left, fin, fin_sent) =
            with(so, |inner| (inner.unsent.len(), inner.fin, inner.fin_sent));
        let Some(peer) = peer_of(so) else {
            // It is gone, which is no matter until something is sent.
            if left > 0 {
                reset(so);
            }
            return;
        };
        let goes_on = if left > 0 {
            move_segment(so, peer)
        } else {
            if fin && !fin_sent {
                send_end(so, peer);
            }
            false
        };
        socket::release(peer);
        if !goes_on {
            return;
        }
    }
}

fn move_segment(so: So, peer: So) -> bool {
    if with(peer, |inner| inner.closed) {
        reset(so);
        return false;
    }
    let sb = socket::buf(peer, Which::Receive);
    let shut = socket::is_shut(peer, Which::Receive);
    let window = sb.sb_hiwat.saturating_sub(sb.sb_ccc) as usize;
    let left = with(so, |inner| inner.unsent.len());
    let most = if shut { left } else { left.min(window) }.min(SEGMENT);
    if most == 0 {
        return false;
    }
    // Now and then a segment is smaller than it could be.
    let count = if sched::random(4) == 0 { 1 + sched::random(most as u64) as usize } else { most };
    let bytes: Vec<u8> = with(so, |inner| inner.unsent.drain(..count).collect());
    socket::lock(peer, Which::Receive);
    if socket::is_shut(peer, Which::Receive) {
        socket::unlock(peer, Which::Receive);
    } else {
        socket_io::append(peer, &bytes);
        socket::wakeup(peer, Which::Receive);
    }
    sched::point();
    // The acknowledgement. A connection that was reset meanwhile has dropped all.
    socket::lock(so, Which::Send);
    let sb = socket::buf(so, Which::Send);
    let acked = (count as u32).min(sb.sb_ccc);
    sb.sb_acc -= acked;
    sb.sb_ccc -= acked;
    socket::wakeup(so, Which::Send);
    true
}

fn send_end(so: So, peer: So) {
    with(so, |inner| inner.fin_sent = true);
    socket::shut(peer, Which::Receive);
    if with(peer, |inner| inner.fin_sent) {
        for each in [so, peer] {
            socket::disconnected(each);
        }
        cut(so);
    }
}

/// Drops TCP's own reference once there is nothing left to send.
fn settle(so: So) {
    let over = with(so, |inner| {
        inner.kept && (inner.fin_sent || inner.peer.is_null()) && {
            inner.kept = false;
            true
        }
    });
    if over {
        socket::release(so);
    }
}

/// The listener of a port, or the socket that is bound to it.
fn at_port(kind: Kind, port: u16, wanted: impl Fn(So) -> bool) -> Option<So> {
    let found = SOCKETS.with(|all| {
        let mut ours = all.iter().filter(|(_, inner)| {
            inner.family == Family::Inet
                && inner.kind == kind
                && inner.port == port
                && !inner.closed
        });
        ours.find(|(at, _)| wanted(**at as So)).map(|(&at, _)| at as So)
    })?;
    Some(socket::hold(found))
}

/// A connection is asked for: made, refused, or left to be asked for again.
fn answer(so: So) {
    if socket::state(so) & sys::SS_ISCONNECTING == 0 || with(so, |inner| inner.closed) {
        return;
    }
    let port = with(so, |inner| inner.peer_port);
    let Some(listener) = at_port(Kind::Stream, port, socket::is_listening) else {
        socket::set_error(so, ECONNREFUSED);
        socket::disconnected(so);
        return;
    };
    match socket::new_connection(listener) {
        None => {
            // Nobody answers; it is asked for again a little later.
            let soon = sched::now() + sched::SECOND / 100;
            sched::sleep(QUEUE + 2, false, "syn", Some(soon), || ());
            put(Work::Connect(socket::hold(so)));
        }
        Some(new) => {
            let own = with(so, |inner| {
                inner.peer = new;
                inner.port
            });
            with(new, |inner| {
                (inner.peer, inner.port, inner.peer_port) = (so, port, own);
            });
            socket::hold(new);
            socket::connected(new);
            socket::connected(so);
            sched::point();
            if with(listener, |inner| inner.closed) {
                abort(new);
                socket::release(new);
            } else {
                socket::offer(listener, new);
            }
            socket::release(new);
        }
    }
    socket::release(listener);
}

// UDP.

/// Queues a datagram for the peer.
pub fn send_packet(so: So, bytes: Vec<u8>) {
    let port = with(so, |inner| inner.peer_port);
    put(Work::Packet(socket::hold(so), port, bytes));
}

/// Brings a datagram to whom it is for, if there is room.
fn deliver(so: So, port: u16, bytes: Vec<u8>) {
    let from = with(so, |inner| inner.port);
    let takes = |_: So| true;
    let Some(to) = at_port(Kind::Datagram, port, takes) else {
        // What comes back says that nobody is there.
        if socket::state(so) & sys::SS_ISCONNECTED != 0 {
            socket::set_error(so, ECONNREFUSED);
            for which in [Which::Receive, Which::Send] {
                socket::lock(so, which);
                socket::wakeup(so, which);
            }
        }
        return;
    };
    let only = with(to, |inner| inner.peer_port);
    if only == 0 || only == from {
        let record = record(bytes, 16, 0);
        socket::lock(to, Which::Receive);
        let room = socket::space(to, Which::Receive) >= i64::from(record.bytes)
            && !socket::is_shut(to, Which::Receive);
        if room {
            add_record(to, record);
            socket::wakeup(to, Which::Receive);
        } else {
            socket::unlock(to, Which::Receive);
        }
    }
    socket::release(to);
}

/// A message with its sender's name of `name` bytes.
fn record(data: Vec<u8>, name: u32, from: usize) -> Record {
    let bytes = data.len() as u32 + name;
    let memory = socket_io::memory_of(data.len());
    Record { data, from, bytes, control: name, memory }
}

/// The half is locked.
fn add_record(to: So, record: Record) {
    let sb = socket::buf(to, Which::Receive);
    sb.sb_acc += record.bytes;
    sb.sb_ccc += record.bytes;
    sb.sb_ctl += record.control;
    sb.sb_mbcnt += record.memory;
    with(to, |inner| inner.records.push_back(record));
}

// The local domain.

/// pr_send of streams and packets.
///
/// # Errors
/// ENOTCONN, EPIPE, ECONNRESET.
pub fn send(so: So, bytes: Vec<u8>) -> Result<(), Errno> {
    if with(so, |inner| inner.family) == Family::Inet {
        return send_tcp(so, &bytes);
    }
    if socket::state(so) & sys::SS_ISCONNECTED == 0 {
        return Err(ENOTCONN);
    }
    let peer = peer_of(so).ok_or(ENOTCONN)?;
    if socket::is_shut(so, Which::Send) {
        socket::release(peer);
        return Err(EPIPE);
    }
    socket::lock(peer, Which::Receive);
    if with(so, |inner| inner.peer) != peer {
        // It went while its lock was waited for.
        socket::unlock(peer, Which::Receive);
        socket::release(peer);
        return Err(ENOTCONN);
    }
    let empty = bytes.is_empty();
    match with(so, |inner| inner.kind) {
        Kind::Stream => socket_io::append(peer, &bytes),
        _ => add_record(peer, record(bytes, 16, 0)),
    }
    if empty && socket::buf(peer, Which::Receive).sb_acc == 0 {
        socket::unlock(peer, Which::Receive);
    } else {
        socket::wakeup(peer, Which::Receive);
    }
    sched::point();
    // The receiver looks at its buffer under this lock, too, before it says that there is room.
    socket::lock(so, Which::Send);
    if is_full(so, peer) {
        socket::set_flag(so, Which::Send, sys::SB_STOP);
    }
    socket::unlock(so, Which::Send);
    socket::release(peer);
    Ok(())
}

/// Whether the sender has to stop.
fn is_full(sender: So, receiver: So) -> bool {
    let (sb, has) = (socket::buf(sender, Which::Send), socket::buf(receiver, Which::Receive));
    has.sb_acc >= sb.sb_hiwat || has.sb_mbcnt >= sb.sb_mbmax
}

fn send_tcp(so: So, bytes: &[u8]) -> Result<(), Errno> {
    socket::lock(so, Which::Send);
    if socket::state(so) & sys::SS_ISCONNECTED == 0 || socket::is_shut(so, Which::Send) {
        socket::unlock(so, Which::Send);
        return Err(socket::take_error(so).unwrap_or(EPIPE));
    }
    with(so, |inner| inner.unsent.extend(bytes));
    let sb = socket::buf(so, Which::Send);
    sb.sb_acc += bytes.len() as u32;
    sb.sb_ccc += bytes.len() as u32;
    socket::unlock(so, Which::Send);
    output(so);
    Ok(())
}

/// uipc_sosend_dgram's end: the message goes to the peer, if that has room for more of this sender.
///
/// # Errors
/// ENOTCONN, ENOBUFS.
pub fn send_datagram(so: So, bytes: Vec<u8>) -> Result<(), Errno> {
    let peer = peer_of(so).ok_or(ENOTCONN)?;
    socket::lock(peer, Which::Receive);
    let record = record(bytes, 16, so as usize);
    let (used, memory) = with(peer, |inner| {
        let own = inner.records.iter().filter(|its| its.from == so as usize);
        own.fold((0, 0), |sum, its| (sum.0 + its.bytes, sum.1 + its.memory))
    });
    let sb = socket::buf(so, Which::Send);
    let room = used + record.bytes <= sb.sb_hiwat && memory + record.memory <= sb.sb_mbmax;
    if room {
        add_record(peer, record);
        socket::wakeup(peer, Which::Receive);
    } else {
        socket::unlock(peer, Which::Receive);
    }
    socket::release(peer);
    if room { Ok(()) } else { Err(ENOBUFS) }
}

/// pr_rcvd: some of what was received is taken.
pub fn received(so: So) {
    let Some(peer) = peer_of(so) else { return };
    if with(so, |inner| inner.family) == Family::Inet {
        output(peer);
    } else {
        socket::lock(peer, Which::Send);
        if !is_full(peer, so) {
            socket::clear_flag(peer, Which::Send, sys::SB_STOP);
        }
        socket::wakeup(peer, Which::Send);
    }
    socket::release(peer);
}

/// pr_shutdown: no more is sent.
pub fn shutdown(so: So) {
    socket::shut(so, Which::Send);
    let (family, kind) = with(so, |inner| {
        inner.fin = true;
        (inner.family, inner.kind)
    });
    match (family, kind) {
        (_, Kind::Datagram) => {}
        (Family::Inet, _) => output(so),
        _ => {
            if let Some(peer) = peer_of(so) {
                socket::shut(peer, Which::Receive);
                socket::release(peer);
            }
        }
    }
}

/// Connects two sockets of the local domain: both ways, but a datagram socket's only one.
pub fn join(so: So, peer: So) {
    with(so, |inner| inner.peer = peer);
    socket::connected(so);
    if with(so, |inner| inner.kind) != Kind::Datagram {
        with(peer, |inner| inner.peer = so);
        socket::connected(peer);
    }
}

/// Whether listen(2) makes sense.
///
/// # Errors
/// EOPNOTSUPP: not of this kind. EDESTADDRREQ: no name.
pub fn check_listen(so: So) -> Result<(), Errno> {
    let (family, kind, named) = with(so, |inner| (inner.family, inner.kind, inner.path.is_some()));
    match (family, kind) {
        (_, Kind::Datagram) => Err(EOPNOTSUPP),
        (Family::Local, _) if !named => Err(EDESTADDRREQ),
        (Family::Inet, _) => {
            bind_port(so, 0);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Gives a socket a port, any with 0; one it has stays.
pub fn bind_port(so: So, port: u16) -> bool {
    if with(so, |inner| inner.port) != 0 {
        return port == 0;
    }
    let kind = with(so, |inner| inner.kind);
    let taken = |port: u16| {
        SOCKETS.with(|all| {
            let of_port =
                |inner: &socket::Inner| inner.kind == kind && inner.port == port && !inner.closed;
            all.values().any(of_port)
        })
    };
    let port = match port {
        0 => loop {
            let next = NETWORK.with(|network| {
                let next = network.next_port;
                network.next_port = if next == u16::MAX { 49_152 } else { next + 1 };
                next
            });
            if !taken(next) {
                break next;
            }
        },
        port if taken(port) => return false,
        port => port,
    };
    with(so, |inner| inner.port = port);
    true
}

/// Gives a socket a name of the local domain.
pub fn bind_path(so: So, id: (u64, u64)) {
    with(so, |inner| inner.path = Some(id));
    NETWORK.with(|network| network.paths.insert(id, so as usize));
}

/// connect(2) to a port of this machine. Waits, unless the socket does not.
///
/// # Errors
/// EISCONN, EALREADY, EINPROGRESS, ECONNREFUSED, EOPNOTSUPP; EINTR: a signal.
pub fn connect_port(so: So, port: u16) -> Result<(), Errno> {
    if socket::is_listening(so) {
        return Err(EOPNOTSUPP);
    }
    bind_port(so, 0);
    if with(so, |inner| inner.kind) == Kind::Datagram {
        with(so, |inner| inner.peer_port = port);
        socket::connected(so);
        return Ok(());
    }
    if socket::state(so) & sys::SS_ISCONNECTED != 0 {
        return Err(EISCONN);
    }
    if socket::state(so) & sys::SS_ISCONNECTING != 0 {
        return Err(EALREADY);
    }
    with(so, |inner| inner.peer_port = port);
    socket::lock_socket(so);
    socket::set_state(so, sys::SS_ISCONNECTING, 0);
    socket::unlock_socket(so);
    put(Work::Connect(socket::hold(so)));
    if socket::state(so) & sys::SS_NBIO != 0 {
        return Err(EINPROGRESS);
    }
    socket::wait_connected(so)
}

/// connect(2) to a name of the local domain.
///
/// # Errors
/// EISCONN, ECONNREFUSED, EPROTOTYPE, EOPNOTSUPP.
pub fn connect_path(so: So, id: (u64, u64)) -> Result<(), Errno> {
    if socket::is_listening(so) {
        return Err(EOPNOTSUPP);
    }
    let kind = with(so, |inner| inner.kind);
    if kind != Kind::Datagram && socket::state(so) & sys::SS_ISCONNECTED != 0 {
        return Err(EISCONN);
    }
    let at = NETWORK.with(|network| network.paths.get(&id).copied());
    let to = socket::hold(at.ok_or(ECONNREFUSED)? as So);
    let result = if with(to, |inner| inner.kind) != kind {
        Err(EPROTOTYPE)
    } else if kind == Kind::Datagram {
        join(so, to);
        Ok(())
    } else {
        match socket::new_connection(to) {
            None => Err(ECONNREFUSED),
            Some(new) => {
                join(so, new);
                socket::offer(to, new);
                Ok(())
            }
        }
    };
    socket::release(to);
    result
}

/// Takes a connection down that nobody has accepted.
pub fn abort(so: So) {
    if with(so, |inner| inner.family) == Family::Inet {
        if let Some(peer) = peer_of(so) {
            cut(so);
            put(Work::Reset(peer));
        }
        socket::disconnected(so);
    } else {
        leave(so);
    }
}

/// pr_disconnect and pr_close; true: the reference stays with TCP, which is not done.
pub fn close(so: So) -> bool {
    let (family, kind) = with(so, |inner| (inner.family, inner.kind));
    let is_connected = !socket::is_listening(so) && socket::state(so) & sys::SS_ISCONNECTED != 0;
    if family == Family::Local {
        if !socket::is_listening(so) {
            leave(so);
        }
        return false;
    }
    if kind == Kind::Datagram || !is_connected {
        return false;
    }
    // SAFETY: the caller's reference.
    let at_once = unsafe { (*so).so_options as u32 & sys::SO_LINGER != 0 && (*so).so_linger == 0 };
    socket::drop_received(so);
    if at_once {
        abort(so);
        return false;
    }
    let fin_sent = with(so, |inner| {
        inner.fin = true;
        inner.kept = !inner.fin_sent;
        inner.fin_sent
    });
    if fin_sent {
        return false;
    }
    socket::shut(so, Which::Send);
    output(so);
    true
}

/// Leaves a peer of the local domain: unp_disconnect.
fn leave(so: So) {
    let Some(peer) = peer_of(so) else { return };
    if with(so, |inner| inner.kind) == Kind::Datagram {
        with(so, |inner| inner.peer = std::ptr::null_mut());
        forget_sender(so, peer);
        socket::lock_socket(so);
        socket::set_state(so, 0, sys::SS_ISCONNECTED);
        socket::unlock_socket(so);
    } else {
        cut(so);
        socket::disconnected(so);
        socket::disconnected(peer);
    }
    socket::release(peer);
}

/// What a datagram socket has sent counts for it no longer.
fn forget_sender(so: So, peer: So) {
    with(peer, |inner| {
        for record in inner.records.iter_mut().filter(|its| its.from == so as usize) {
            record.from = 0;
        }
    });
}

/// The end of a socket: nobody may know it any more.
pub fn detach(so: So) {
    // Perhaps the last one.
    sched::wakeup(QUEUE, false);
    if let Some(id) = with(so, |inner| inner.path.take()) {
        NETWORK.with(|network| network.paths.retain(|its, at| *its != id || *at != so as usize));
    }
    let peer = with(so, |inner| std::mem::replace(&mut inner.peer, std::ptr::null_mut()));
    if !peer.is_null() {
        forget_sender(so, peer);
    }
    let known: Vec<So> = SOCKETS.with(|all| {
        all.iter().filter(|(_, inner)| inner.peer == so).map(|(&at, _)| at as So).collect()
    });
    for other in known {
        socket::hold(other);
        with(other, |inner| inner.peer = std::ptr::null_mut());
        if with(other, |inner| inner.family) == Family::Inet {
            output(other);
        } else {
            // unp_drop, of a datagram socket that was connected to it.
            socket::set_error(other, ECONNRESET);
            socket::lock_socket(other);
            socket::set_state(other, 0, sys::SS_ISCONNECTED);
            socket::unlock_socket(other);
        }
        socket::release(other);
    }
}
