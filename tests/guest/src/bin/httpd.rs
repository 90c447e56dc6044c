// SPDX-License-Identifier: BSD-2-Clause
//! A static HTTP/1.0 file server and a load generator, each one process of one thread that knows
//! only asynchronous requests and one kqueue.
//!
//! `httpd [--mb 100] [--connections 64]` makes files in the current directory, serves them on the
//! loopback interface, fetches them over that many connections at a time until so many megabytes
//! have come, checks every byte, and prints what it did. The only calls that are not asynchronous
//! are those that make and accept connections and open files.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Cb, SIGEV_KEVENT, Sigevent};
use guest::errno::{EAGAIN, EINVAL};
use guest::mem::Region;
use guest::net::{self, Inet, SOCK_STREAM};
use guest::out::Text;
use guest::path::Path;
use guest::rng::mix;
use guest::sys::{self, Ended, Fork};
use guest::sysctl::{Maybe, served};
use guest::time::{ms_since, now};
use guest::{Args, Errno, Result, println};

guest::program!(run);

const CONNECTIONS: usize = 64;
/// A connection's buffer.
const CHUNK: usize = 64 << 10;
/// Sizes of the files.
const SIZES: [u64; 8] = [0, 1, 999, 4096, 65_536, 100_001, 1 << 20, 3_000_017];

const EVFILT_READ: i16 = -1;
const EVFILT_AIO: i16 = -3;
const EV_ADD: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Kevent {
    ident: usize,
    filter: i16,
    flags: u16,
    fflags: u32,
    data: i64,
    udata: u64,
    ext: [u64; 4],
}

/// kevent(2): changes one thing, or waits for one.
fn kevent(kq: i32, change: Option<&Kevent>, event: Option<&mut Kevent>) -> Result<usize> {
    let (changes, change) = change.map_or((0, 0), |at| (1, core::ptr::from_ref(at) as usize));
    let (events, event) = event.map_or((0, 0), |at| (1, core::ptr::from_mut(at) as usize));
    sys::call(560, [kq as usize, change, changes, event, events, 0])
}

fn byte(file: usize, offset: u64) -> u8 {
    mix(((file as u64) << 40) ^ (offset / 8)).to_le_bytes()[(offset % 8) as usize]
}

fn name(file: usize) -> Path {
    Path::of(format_args!("file{file}"))
}

fn make_files() -> Result<()> {
    let mut bytes = [0u8; 4096];
    for (file, &size) in SIZES.iter().enumerate() {
        let flags = sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC;
        let fd = sys::open(name(file).as_cstr(), flags, 0o644)?;
        let mut at = 0;
        while at < size {
            let count = bytes.len().min((size - at) as usize);
            for (index, to) in bytes[..count].iter_mut().enumerate() {
                *to = byte(file, at + index as u64);
            }
            at += sys::pwrite(fd, &bytes[..count], at as i64)? as u64;
        }
        sys::close(fd)?;
    }
    Ok(())
}

/// A connection's part that both sides have: one request at a time, told by the kqueue.
struct Line {
    cb: Cb,
    buffer: Region,
    kq: i32,
    number: usize,
}

impl Line {
    fn new(kq: i32, number: usize, memory: &Region) -> Line {
        let start = number * (CHUNK + 4096);
        Line { cb: Cb::at(memory, start), buffer: memory.part(start + 4096, CHUNK), kq, number }
    }

    fn begin(&self, fd: i32, offset: u64, from: usize, len: usize, writes: bool) -> Result<()> {
        let mut block = aio::request(fd, offset as i64, self.buffer.at(from), len);
        block.sigevent = Sigevent {
            notify: SIGEV_KEVENT,
            signo: self.kq,
            value: self.number,
            ..Sigevent::default()
        };
        self.cb.set(block);
        if writes { aio::write(self.cb.addr()) } else { aio::read(self.cb.addr()) }
    }

    fn end(&self) -> Result<usize> {
        aio::return_(self.cb.addr()).map(|count| count as usize)
    }
}

/// What a served connection waits for.
#[derive(Clone, Copy)]
enum Serving {
    Free,
    Request { have: usize },
    Header { from: usize, len: usize },
    FileRead,
    FileSend { from: usize, len: usize },
}

struct Served {
    line: Line,
    state: Serving,
    socket: i32,
    file: i32,
    at: u64,
    size: u64,
}

impl Served {
    fn accept(&mut self, socket: i32) -> Result<()> {
        self.socket = socket;
        self.state = Serving::Request { have: 0 };
        self.line.begin(socket, 0, 0, CHUNK, false)
    }

    fn close(&mut self) -> Result<()> {
        if self.file >= 0 {
            sys::close(self.file)?;
        }
        sys::close(self.socket)?;
        self.file = -1;
        self.state = Serving::Free;
        Ok(())
    }

    /// Opens what a complete request asks for, and sends the answer's head.
    fn answer(&mut self, have: usize) -> Result<()> {
        let mut text = [0u8; 256];
        let have = have.min(text.len());
        self.line.buffer.read(0, &mut text[..have]);
        let path = text[..have].strip_prefix(b"GET /").ok_or(EINVAL)?;
        let len = path.iter().position(|&byte| byte == b' ').ok_or(EINVAL)?;
        self.file = sys::open(Path::new(&path[..len]).as_cstr(), sys::O_RDONLY, 0)?;
        self.size = sys::fstat(self.file)?.size as u64;
        self.at = 0;
        let head: Text<128> =
            Text::of(format_args!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", self.size));
        let head = head.as_bytes();
        self.line.buffer.write(0, head);
        self.state = Serving::Header { from: 0, len: head.len() };
        self.line.begin(self.socket, 0, 0, head.len(), true)
    }

    fn next_piece(&mut self) -> Result<()> {
        if self.at == self.size {
            return self.close();
        }
        self.state = Serving::FileRead;
        self.line.begin(self.file, self.at, 0, CHUNK, false)
    }

    fn step(&mut self) -> Result<()> {
        let count = self.line.end()?;
        match self.state {
            Serving::Free => Err(EINVAL),
            Serving::Request { .. } if count == 0 => self.close(),
            Serving::Request { have } => {
                let have = have + count;
                let mut last = [0u8; 4];
                if have >= 4 {
                    self.line.buffer.read(have - 4, &mut last);
                }
                if &last == b"\r\n\r\n" {
                    return self.answer(have);
                }
                self.state = Serving::Request { have };
                self.line.begin(self.socket, 0, have, CHUNK - have, false)
            }
            Serving::Header { from, len } if count < len => {
                self.state = Serving::Header { from: from + count, len: len - count };
                self.line.begin(self.socket, 0, from + count, len - count, true)
            }
            Serving::Header { .. } => self.next_piece(),
            Serving::FileRead => {
                self.at += count as u64;
                self.state = Serving::FileSend { from: 0, len: count };
                self.line.begin(self.socket, 0, 0, count, true)
            }
            Serving::FileSend { from, len } if count < len => {
                self.state = Serving::FileSend { from: from + count, len: len - count };
                self.line.begin(self.socket, 0, from + count, len - count, true)
            }
            Serving::FileSend { .. } => self.next_piece(),
        }
    }
}

/// Serves until a connection says no word.
fn serve(listener: i32) -> Result<()> {
    let kq = sys::kqueue()?;
    let memory = Region::map(CONNECTIONS * (CHUNK + 4096))?;
    let mut lines: [Served; CONNECTIONS] = core::array::from_fn(|number| Served {
        line: Line::new(kq, number, &memory),
        state: Serving::Free,
        socket: -1,
        file: -1,
        at: 0,
        size: 0,
    });
    sys::set_nonblocking(listener)?;
    let change = Kevent {
        ident: listener as usize,
        filter: EVFILT_READ,
        flags: EV_ADD,
        ..Kevent::default()
    };
    kevent(kq, Some(&change), None)?;
    loop {
        let mut event = Kevent::default();
        kevent(kq, None, Some(&mut event))?;
        match event.filter {
            EVFILT_READ => {
                let free = lines.iter_mut().find(|line| matches!(line.state, Serving::Free));
                let Some(line) = free else { continue };
                match net::accept(listener) {
                    Ok(socket) => line.accept(socket)?,
                    Err(EAGAIN) => {}
                    Err(error) => return Err(error),
                }
            }
            EVFILT_AIO => lines[event.udata as usize].step()?,
            _ => return Err(EINVAL),
        }
    }
}

/// A connection that fetches.
struct Fetch {
    line: Line,
    socket: i32,
    file: usize,
    sending: bool,
    /// Bytes of the head that are in the buffer, and once it is complete, of the body that came.
    head: Option<usize>,
    body: u64,
}

impl Fetch {
    fn begin(&mut self, to: &Inet, file: usize) -> Result<()> {
        self.socket = net::socket(net::AF_INET, SOCK_STREAM, 0)?;
        net::connect(self.socket, to)?;
        let text: Text<128> =
            Text::of(format_args!("GET /{} HTTP/1.0\r\n\r\n", name(file).as_str()));
        self.line.buffer.write(0, text.as_bytes());
        (self.file, self.sending, self.head, self.body) = (file, true, Some(0), 0);
        self.line.begin(self.socket, 0, 0, text.as_bytes().len(), true)
    }

    /// True: it is through, and right.
    fn step(&mut self) -> Result<bool> {
        let count = self.line.end()?;
        if self.sending {
            self.sending = false;
        } else if count == 0 {
            sys::close(self.socket)?;
            if self.head.is_some() || self.body != SIZES[self.file] {
                println!("httpd: file {}: {} bytes", self.file, self.body);
                return Err(EINVAL);
            }
            return Ok(true);
        } else {
            self.took(count)?;
        }
        let have = self.head.unwrap_or(0);
        self.line.begin(self.socket, 0, have, CHUNK - have, false)?;
        Ok(false)
    }

    fn took(&mut self, count: usize) -> Result<()> {
        let mut body = 0..count;
        if let Some(have) = self.head {
            let have = have + count;
            let mut text = [0u8; 256];
            let seen = have.min(text.len());
            self.line.buffer.read(0, &mut text[..seen]);
            let Some(end) = text[..seen].windows(4).position(|four| four == b"\r\n\r\n") else {
                self.head = Some(have);
                return Ok(());
            };
            let wanted: Text<128> = Text::of(format_args!(
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
                SIZES[self.file]
            ));
            if &text[..end + 4] != wanted.as_bytes() {
                println!("httpd: file {}: a wrong head", self.file);
                return Err(EINVAL);
            }
            self.head = None;
            body = end + 4..have;
        }
        let mut bytes = [0u8; 4096];
        while !body.is_empty() {
            let count = body.len().min(bytes.len());
            self.line.buffer.read(body.start, &mut bytes[..count]);
            for (index, &got) in bytes[..count].iter().enumerate() {
                let at = self.body + index as u64;
                if got != byte(self.file, at) {
                    println!("httpd: file {}: byte {at} is wrong", self.file);
                    return Err(EINVAL);
                }
            }
            self.body += count as u64;
            body.start += count;
        }
        Ok(())
    }
}

fn load(to: &Inet, connections: usize, wanted: u64) -> Result<(u64, u64)> {
    let kq = sys::kqueue()?;
    let memory = Region::map(connections * (CHUNK + 4096))?;
    let mut lines: [Option<Fetch>; CONNECTIONS] = core::array::from_fn(|number| {
        (number < connections).then(|| Fetch {
            line: Line::new(kq, number, &memory),
            socket: -1,
            file: 0,
            sending: false,
            head: None,
            body: 0,
        })
    });
    let (mut begun, mut promised, mut done, mut bytes) = (0, 0, 0, 0);
    let mut next = |line: &mut Fetch| {
        if promised >= wanted {
            return Ok(false);
        }
        let file = begun % SIZES.len();
        begun += 1;
        promised += SIZES[file];
        line.begin(to, file).map(|()| true)
    };
    let mut busy = 0;
    for line in lines.iter_mut().flatten() {
        busy += usize::from(next(line)?);
    }
    while busy > 0 {
        let mut event = Kevent::default();
        kevent(kq, None, Some(&mut event))?;
        let Some(line) = &mut lines[event.udata as usize] else { return Err(EINVAL) };
        if line.step()? {
            done += 1;
            bytes += line.body;
            if !next(line)? {
                busy -= 1;
            }
        }
    }
    Ok((done, bytes))
}

fn run(args: Args) -> i32 {
    match both(args) {
        Ok(status) => status,
        Err(error) => {
            println!("httpd: {error}");
            1
        }
    }
}

fn both(args: Args) -> Result<i32> {
    let wanted = args.number(c"--mb", 100) << 20;
    let connections =
        (args.number(c"--connections", CONNECTIONS as u64) as usize).clamp(1, CONNECTIONS);
    make_files()?;
    let (listener, address) = net::listener(SOCK_STREAM, 0, 128)?;
    let before = served();
    let server = match sys::fork()? {
        Fork::Child => {
            let failed: Errno = serve(listener).err().unwrap_or(EINVAL);
            println!("httpd: the server: {failed}");
            sys::exit(1)
        }
        Fork::Parent(pid) => pid,
    };
    sys::close(listener)?;
    let start = now();
    let result = load(&address, connections, wanted);
    let took = ms_since(start);
    let alive = sys::wait(server, sys::WNOHANG)?.is_none();
    sys::kill(server, sys::SIGKILL)?;
    let ended = if alive { sys::wait_for(server) } else { None };
    let (done, bytes) = result?;
    let served = served().zip(before).map(|(after, before)| after - before);
    println!(
        "httpd: {done} files, {bytes} bytes over {connections} connections, all as they should be; \
         served {} ms {took}",
        Maybe(served)
    );
    Ok(i32::from(ended != Some(Ended::Signal(sys::SIGKILL))))
}
