// SPDX-License-Identifier: BSD-2-Clause
//! System calls on sockets, of the local domain and of this machine's internet.

use std::os::unix::ffi::OsStrExt;

use crate::errno::*;
use crate::socket::{self, Family, Kind, So, Which, with};
use crate::{file, sched, socket_net, sys, syscalls, vm};

type Result<T = u64> = std::result::Result<T, Errno>;

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const SOL_SOCKET: i32 = 0xffff;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;

/// Serves a call, if it is one on sockets.
pub fn call(number: u64, args: &[u64; 8]) -> Option<Result> {
    let a = |index: usize| args[index];
    let int = |index: usize| args[index] as i32;
    Some(match number {
        30 => accept(int(0), a(1), a(2)),
        31 => name_of(int(0), a(1), a(2), |inner| inner.peer_port),
        32 => name_of(int(0), a(1), a(2), |inner| inner.port),
        97 => make(int(0), int(1), int(2)),
        98 => connect(int(0), a(1), a(2)),
        104 => bind(int(0), a(1), a(2)),
        105 => set_option(int(0), int(1), int(2), a(3), a(4)),
        106 => on_socket(int(0), |so| socket::listen(so, int(1)).map(|()| 0)),
        118 => get_option(int(0), int(1), int(2), a(3), a(4)),
        134 => on_socket(int(0), |so| socket::shutdown(so, int(1)).map(|()| 0)),
        135 => pair(int(0), int(1), int(2), a(3)),
        _ => return None,
    })
}

fn on_socket(fd: i32, action: impl FnOnce(So) -> Result) -> Result {
    let fp = syscalls::get(fd, [0, 0])?;
    let result = match socket::of(fp) {
        Some(so) => action(so),
        None => Err(ENOTSOCK),
    };
    file::release(fp);
    result
}

fn new(domain: i32, kind: i32, protocol: i32) -> Result<So> {
    // SOCK_CLOEXEC and SOCK_NONBLOCK are not looked at.
    let family = match domain {
        AF_UNIX => Family::Local,
        AF_INET => Family::Inet,
        _ => return Err(EAFNOSUPPORT),
    };
    let kind = match (kind, family) {
        (1, _) => Kind::Stream,
        (2, _) => Kind::Datagram,
        (5, Family::Local) => Kind::Packet,
        _ => return Err(EPROTOTYPE),
    };
    let own = match (family, kind) {
        (Family::Local, _) => 0,
        (_, Kind::Datagram) => IPPROTO_UDP,
        _ => IPPROTO_TCP,
    };
    if protocol != 0 && protocol != own {
        return Err(EPROTONOSUPPORT);
    }
    Ok(socket::create(family, kind))
}

fn make(domain: i32, kind: i32, protocol: i32) -> Result {
    let so = new(domain, kind, protocol)?;
    syscalls::add_fd(file::of_socket(so), 0, false)
}

fn pair(domain: i32, kind: i32, protocol: i32, at: u64) -> Result {
    if domain != AF_UNIX {
        return Err(EOPNOTSUPP);
    }
    let (one, two) = (new(domain, kind, protocol)?, new(domain, kind, protocol)?);
    socket_net::join(one, two);
    if with(one, |inner| inner.kind) == Kind::Datagram {
        socket_net::join(two, one);
    }
    let (one, two) = (file::of_socket(one), file::of_socket(two));
    let one = match syscalls::add_fd(one, 0, false) {
        Ok(one) => one,
        Err(error) => {
            file::release(two);
            return Err(error);
        }
    };
    let two = match syscalls::add_fd(two, 0, false) {
        Ok(two) => two,
        Err(error) => {
            let _ = syscalls::close(one as i32);
            return Err(error);
        }
    };
    vm::write(at, [one as i32, two as i32])?;
    Ok(0)
}

/// An address of a program's.
enum Address {
    /// A port of this machine.
    Port(u16),
    /// A path, absolute.
    Path(std::path::PathBuf),
}

fn address(so: So, at: u64, len: u64) -> Result<Address> {
    let bytes = vm::read_bytes(at, (len as usize).min(106))?;
    let family = with(so, |inner| inner.family);
    match (family, bytes.get(1)) {
        (Family::Inet, Some(&2)) if bytes.len() >= 8 => {
            Ok(Address::Port(u16::from_be_bytes([bytes[2], bytes[3]])))
        }
        (Family::Local, Some(&1)) => {
            let name = &bytes[2..];
            let name = &name[..name.iter().position(|&byte| byte == 0).unwrap_or(name.len())];
            syscalls::absolute(name).map(Address::Path)
        }
        _ => Err(EAFNOSUPPORT),
    }
}

fn bind(fd: i32, at: u64, len: u64) -> Result {
    on_socket(fd, |so| match address(so, at, len)? {
        Address::Port(port) if socket_net::bind_port(so, port) => Ok(0),
        Address::Port(_) => Err(EADDRINUSE),
        Address::Path(_) if with(so, |inner| inner.path.is_some()) => Err(EINVAL),
        Address::Path(path) => {
            let name = c_path(&path)?;
            // SAFETY: a C string.
            if unsafe { libc::mknod(name.as_ptr(), libc::S_IFSOCK | 0o700, 0) } != 0 {
                let error = last();
                return Err(if error == EEXIST { EADDRINUSE } else { error });
            }
            socket_net::bind_path(so, identity(&path)?);
            Ok(0)
        }
    })
}

fn c_path(path: &std::path::Path) -> Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| ENOENT)
}

/// Device and inode of the node that is a name.
fn identity(path: &std::path::Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).map_err(|error| of_host(&error))?;
    Ok((found.dev(), found.ino()))
}

fn connect(fd: i32, at: u64, len: u64) -> Result {
    on_socket(fd, |so| {
        match address(so, at, len)? {
            Address::Port(port) => socket_net::connect_port(so, port)?,
            Address::Path(path) => socket_net::connect_path(so, identity(&path)?)?,
        }
        Ok(0)
    })
}

fn accept(fd: i32, at: u64, len_at: u64) -> Result {
    on_socket(fd, |so| {
        let new = socket::accept(so)?;
        let port = with(new, |inner| inner.peer_port);
        let fd = syscalls::add_fd(file::of_socket(new), 0, false)?;
        if at != 0 {
            put_address(at, len_at, port)?;
        }
        Ok(fd)
    })
}

/// Writes a struct sockaddr_in of this machine.
fn put_address(at: u64, len_at: u64, port: u16) -> Result<()> {
    let mut bytes = [16, AF_INET as u8, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    let room: u32 = vm::read(len_at)?;
    vm::copyout(bytes.as_ptr(), at, bytes.len().min(room as usize))?;
    vm::write(len_at, 16u32)
}

fn name_of(fd: i32, at: u64, len_at: u64, port: impl Fn(&socket::Inner) -> u16) -> Result {
    on_socket(fd, |so| {
        let (family, port) = with(so, |inner| (inner.family, port(inner)));
        match family {
            Family::Inet => put_address(at, len_at, port).map(|()| 0),
            Family::Local => Err(EOPNOTSUPP),
        }
    })
}

fn set_option(fd: i32, level: i32, option: i32, at: u64, len: u64) -> Result {
    on_socket(fd, |so| {
        if len < 4 {
            return Err(EINVAL);
        }
        let value: i32 = vm::read(at)?;
        if level == IPPROTO_TCP {
            // Nothing is held back here.
            return Ok(0);
        }
        if level != SOL_SOCKET {
            return Err(ENOPROTOOPT);
        }
        let option = option as u32;
        match option {
            sys::SO_REUSEADDR | sys::SO_NOSIGPIPE | sys::SO_KEEPALIVE => {
                flag(so, option, value != 0)
            }
            sys::SO_LINGER => {
                let [on, time]: [i32; 2] = vm::read(at)?;
                flag(so, option, on != 0);
                // SAFETY: on_socket has a reference.
                unsafe { (*so).so_linger = time as i16 };
            }
            sys::SO_SNDBUF => size(so, Which::Send, value)?,
            sys::SO_RCVBUF => size(so, Which::Receive, value)?,
            sys::SO_RCVLOWAT => low_water(so, Which::Receive, value)?,
            sys::SO_SNDLOWAT => low_water(so, Which::Send, value)?,
            _ => return Err(ENOPROTOOPT),
        }
        Ok(0)
    })
}

fn flag(so: So, option: u32, on: bool) {
    socket::lock_socket(so);
    // SAFETY: the caller has a reference.
    unsafe {
        if on {
            (*so).so_options |= option as i32;
        } else {
            (*so).so_options &= !(option as i32);
        }
    }
    socket::unlock_socket(so);
}

fn size(so: So, which: Which, value: i32) -> Result<()> {
    if value < 1 || socket::is_listening(so) {
        return Err(EINVAL);
    }
    socket::lock(so, which);
    socket::reserve(socket::buf(so, which), value as u32);
    socket::unlock(so, which);
    Ok(())
}

fn low_water(so: So, which: Which, value: i32) -> Result<()> {
    if value < 1 || socket::is_listening(so) {
        return Err(EINVAL);
    }
    socket::lock(so, which);
    let sb = socket::buf(so, which);
    sb.sb_lowat = sb.sb_hiwat.min(value as u32);
    socket::unlock(so, which);
    Ok(())
}

fn get_option(fd: i32, level: i32, option: i32, at: u64, len_at: u64) -> Result {
    on_socket(fd, |so| {
        let value = match (level, option as u32) {
            (SOL_SOCKET, sys::SO_ERROR) => socket::take_error(so).map_or(0, |error| error.0),
            (SOL_SOCKET, sys::SO_SNDBUF) => socket::buf(so, Which::Send).sb_hiwat as i32,
            (SOL_SOCKET, sys::SO_RCVBUF) => socket::buf(so, Which::Receive).sb_hiwat as i32,
            _ => return Err(ENOPROTOOPT),
        };
        sched::point();
        vm::write(at, value)?;
        vm::write(len_at, 4u32)?;
        Ok(0)
    })
}
