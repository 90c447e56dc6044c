// SPDX-License-Identifier: BSD-2-Clause
//! Sockets: system calls by number, and the few constants tests need.

use crate::Result;
use crate::sys::{Iovec, call as raw};

/// Local domain.
pub const AF_UNIX: i32 = 1;
/// Internet, version 4.
pub const AF_INET: i32 = 2;
/// Bytes in order.
pub const SOCK_STREAM: i32 = 1;
/// Messages that may be lost.
pub const SOCK_DGRAM: i32 = 2;
/// Messages in order.
pub const SOCK_SEQPACKET: i32 = 5;
/// No more reading.
pub const SHUT_RD: i32 = 0;
/// No more writing.
pub const SHUT_WR: i32 = 1;
/// Neither.
pub const SHUT_RDWR: i32 = 2;
/// Level of the options below.
pub const SOL_SOCKET: i32 = 0xffff;
/// An address may be used again at once.
pub const SO_REUSEADDR: i32 = 4;
/// What close(2) waits for: two words.
pub const SO_LINGER: i32 = 0x80;
/// A broken connection sends no signal.
pub const SO_NOSIGPIPE: i32 = 0x800;
/// Size of the sending buffer.
pub const SO_SNDBUF: i32 = 0x1001;
/// Size of the receiving buffer.
pub const SO_RCVBUF: i32 = 0x1002;
/// Reading waits for so many bytes.
pub const SO_RCVLOWAT: i32 = 0x1004;
/// TCP.
pub const IPPROTO_TCP: i32 = 6;
/// Nothing is held back to fill a segment.
pub const TCP_NODELAY: i32 = 1;
/// SCTP.
pub const IPPROTO_SCTP: i32 = 132;

/// socket(2).
///
/// # Errors
/// Those of the call.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<i32> {
    raw(97, [domain as usize, kind as usize, protocol as usize, 0, 0, 0]).map(|fd| fd as i32)
}

/// socketpair(2) in the local domain.
///
/// # Errors
/// Those of the call.
pub fn pair(kind: i32) -> Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    raw(135, [AF_UNIX as usize, kind as usize, 0, ends.as_mut_ptr() as usize, 0, 0])?;
    Ok((ends[0], ends[1]))
}

/// An internet address of this machine, `struct sockaddr_in`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Inet {
    len: u8,
    family: u8,
    port: [u8; 2],
    address: [u8; 4],
    zero: [u8; 8],
}

impl Inet {
    /// A port of the loopback interface; 0: any.
    pub fn loopback(port: u16) -> Self {
        Inet {
            len: 16,
            family: AF_INET as u8,
            port: port.to_be_bytes(),
            address: [127, 0, 0, 1],
            zero: [0; 8],
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// bind(2).
///
/// # Errors
/// Those of the call.
pub fn bind(fd: i32, to: &Inet) -> Result<()> {
    raw(104, [fd as usize, core::ptr::from_ref(to) as usize, 16, 0, 0, 0]).map(|_| ())
}

/// connect(2).
///
/// # Errors
/// Those of the call.
pub fn connect(fd: i32, to: &Inet) -> Result<()> {
    raw(98, [fd as usize, core::ptr::from_ref(to) as usize, 16, 0, 0, 0]).map(|_| ())
}

/// listen(2).
///
/// # Errors
/// Those of the call.
pub fn listen(fd: i32, backlog: i32) -> Result<()> {
    raw(106, [fd as usize, backlog as usize, 0, 0, 0, 0]).map(|_| ())
}

/// accept(2).
///
/// # Errors
/// Those of the call.
pub fn accept(fd: i32) -> Result<i32> {
    raw(30, [fd as usize, 0, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// getsockname(2).
///
/// # Errors
/// Those of the call.
pub fn name(fd: i32) -> Result<Inet> {
    let (mut address, mut len) = (Inet::default(), 16u32);
    raw(32, [fd as usize, &raw mut address as usize, &raw mut len as usize, 0, 0, 0])?;
    Ok(address)
}

/// shutdown(2).
///
/// # Errors
/// Those of the call.
pub fn shutdown(fd: i32, how: i32) -> Result<()> {
    raw(134, [fd as usize, how as usize, 0, 0, 0, 0]).map(|_| ())
}

/// setsockopt(2) of a number.
///
/// # Errors
/// Those of the call.
pub fn set(fd: i32, level: i32, option: i32, value: i32) -> Result<()> {
    let at = &raw const value as usize;
    raw(105, [fd as usize, level as usize, option as usize, at, 4, 0]).map(|_| ())
}

/// Has close(2) reset the connection.
///
/// # Errors
/// Those of setsockopt(2).
pub fn reset_on_close(fd: i32) -> Result<()> {
    let linger = [1i32, 0];
    let at = linger.as_ptr() as usize;
    raw(105, [fd as usize, SOL_SOCKET as usize, SO_LINGER as usize, at, 8, 0]).map(|_| ())
}

/// A listening TCP socket on the loopback interface, and its address.
///
/// # Errors
/// Those of the calls.
pub fn listener(kind: i32, protocol: i32, backlog: i32) -> Result<(i32, Inet)> {
    let fd = socket(AF_INET, kind, protocol)?;
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1)?;
    bind(fd, &Inet::loopback(0))?;
    listen(fd, backlog)?;
    Ok((fd, name(fd)?))
}

/// Two ends of a connection over the loopback interface.
///
/// # Errors
/// Those of the calls.
pub fn connected(kind: i32, protocol: i32) -> Result<(i32, i32)> {
    let (listener, address) = listener(kind, protocol, 5)?;
    let here = socket(AF_INET, kind, protocol)?;
    connect(here, &address)?;
    let there = accept(listener)?;
    crate::sys::close(listener)?;
    Ok((here, there))
}

/// Moves the process into a jail with a network stack of its own, whose loopback interface works;
/// the jail's number.
///
/// # Errors
/// Those of jail_set(2) and ioctl(2): EPERM when not root, EINVAL where there are no such stacks.
pub fn own_stack() -> Result<i32> {
    let new = 1i32;
    let words: [(&[u8], usize, usize); 2] =
        [(b"path\0", b"/\0".as_ptr() as usize, 2), (b"vnet\0", &raw const new as usize, 4)];
    let mut list = [Iovec { base: 0, len: 0 }; 4];
    for (pair, (name, value, len)) in list.chunks_exact_mut(2).zip(words) {
        pair[0] = Iovec { base: name.as_ptr() as usize, len: name.len() };
        pair[1] = Iovec { base: value, len };
    }
    // JAIL_CREATE and JAIL_ATTACH.
    let jail = raw(507, [list.as_ptr() as usize, list.len(), 1 | 4, 0, 0, 0])? as i32;
    let fd = socket(AF_INET, SOCK_DGRAM, 0)?;
    // SIOCAIFADDR of a struct ifaliasreq: name, address, broadcast address, mask, number.
    let mut request = [0u8; 68];
    request[..3].copy_from_slice(b"lo0");
    for (at, address) in [(16, [127, 0, 0, 1]), (48, [255, 0, 0, 0])] {
        request[at] = 16;
        request[at + 1] = AF_INET as u8;
        request[at + 4..at + 8].copy_from_slice(&address);
    }
    raw(54, [fd as usize, 0x8044_692b, request.as_mut_ptr() as usize, 0, 0, 0])?;
    crate::sys::close(fd)?;
    Ok(jail)
}

/// jail_remove(2), which kills all that is in it.
///
/// # Errors
/// Those of the call.
pub fn remove_jail(jail: i32) -> Result<()> {
    raw(508, [jail as usize, 0, 0, 0, 0, 0]).map(|_| ())
}

/// Two UDP sockets, each connected to the other.
///
/// # Errors
/// Those of the calls.
pub fn udp_pair() -> Result<(i32, i32)> {
    let (one, two) = (socket(AF_INET, SOCK_DGRAM, 0)?, socket(AF_INET, SOCK_DGRAM, 0)?);
    bind(one, &Inet::loopback(0))?;
    bind(two, &Inet::loopback(0))?;
    connect(one, &name(two)?)?;
    connect(two, &name(one)?)?;
    Ok((one, two))
}
