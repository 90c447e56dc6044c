// SPDX-License-Identifier: BSD-2-Clause
//! Memory disks, and disks before them that are slow or fail.

use core::ffi::CStr;

use crate::check;
use crate::harness::{Must, Stop, Test, fail, pattern};
use guest::errno::EINTR;
use guest::mem::Region;
use guest::path::Path;
use guest::sys::{self, Ended, Fork};
use guest::sysctl;
use guest::time::{ms_since, now, sleep_ms};

/// `struct md_ioctl` of <sys/mdioctl.h>.
#[repr(C)]
#[derive(Clone, Copy)]
struct MdIoctl {
    version: u32,
    unit: u32,
    kind: u32,
    pad: u32,
    file: usize,
    mediasize: i64,
    sectorsize: u32,
    options: u32,
    base: u64,
    heads: [i32; 2],
    label: usize,
    padding: [i32; 96],
}

const _: () = assert!(size_of::<MdIoctl>() == 448);

/// Of memory, not of pages that swap.
const MD_MALLOC: u32 = 0;
/// Of nothing: writes go nowhere, reads are zeroes.
const MD_NULL: u32 = 4;
const MD_AUTOUNIT: u32 = 4;
const MD_FORCE: u32 = 0x20;

/// `_IOWR('m', number, struct md_ioctl)`.
const fn command(number: usize) -> usize {
    0xc000_0000 | size_of::<MdIoctl>() << 16 | (b'm' as usize) << 8 | number
}

fn control(number: usize, request: &mut MdIoctl) -> guest::Result<()> {
    let fd = sys::open(c"/dev/mdctl", sys::O_RDWR, 0)?;
    let at = core::ptr::from_mut(request) as usize;
    let result = sys::call(54, [fd as usize, command(number), at, 0, 0, 0]);
    sys::close(fd)?;
    result.map(|_| ())
}

fn blank() -> MdIoctl {
    MdIoctl {
        version: 0,
        unit: 0,
        kind: MD_MALLOC,
        pad: 0,
        file: 0,
        mediasize: 0,
        sectorsize: 0,
        options: 0,
        base: 0,
        heads: [0; 2],
        label: 0,
        padding: [0; 96],
    }
}

/// A memory disk, gone when dropped.
pub struct Md {
    unit: u32,
}

impl Md {
    /// Makes one.
    pub fn new(bytes: usize, sector: usize) -> Result<Md, Stop> {
        Md::of(MD_MALLOC, bytes, sector)
    }

    /// Makes one that keeps nothing, and whose driver wants mapped buffers.
    pub fn null(bytes: usize) -> Result<Md, Stop> {
        Md::of(MD_NULL, bytes, 512)
    }

    fn of(kind: u32, bytes: usize, sector: usize) -> Result<Md, Stop> {
        let mut request = blank();
        request.kind = kind;
        request.mediasize = bytes as i64;
        request.sectorsize = sector as u32;
        request.options = MD_AUTOUNIT;
        control(0, &mut request).must("make a memory disk")?;
        Ok(Md { unit: request.unit })
    }

    /// Its device.
    pub fn path(&self) -> Path {
        Path::of(format_args!("/dev/md{}", self.unit))
    }

    /// Opens it.
    pub fn open(&self, flags: i32) -> Result<i32, Stop> {
        open(&self.path(), flags)
    }

    /// Opens one that holds the pattern.
    pub fn patterned(bytes: usize) -> Result<(Md, i32), Stop> {
        let md = Md::new(bytes, 512)?;
        let fd = md.open(sys::O_RDWR)?;
        fill(fd, bytes)?;
        Ok((md, fd))
    }

    /// Takes it away; without `force` it must not be open.
    pub fn detach(&self, force: bool) -> guest::Result<()> {
        let mut request = blank();
        request.unit = self.unit;
        request.options = if force { MD_FORCE } else { 0 };
        control(1, &mut request)
    }
}

impl Drop for Md {
    fn drop(&mut self) {
        let _ = self.detach(true);
    }
}

/// A disk before another, gone when dropped.
pub struct Nop {
    path: Path,
}

impl Nop {
    /// Puts one before a memory disk; it does nothing yet.
    pub fn before(md: &Md) -> Result<Nop, Stop> {
        let path = md.path();
        let made = tool(&[c"/sbin/gnop", c"create", path.as_cstr()])?;
        if made != Ended::Exit(0) {
            return crate::harness::skip(format_args!("no gnop(8): {made:?}"));
        }
        Ok(Nop { path: Path::of(format_args!("{path}.nop")) })
    }

    /// Puts one before a new memory disk that holds the pattern, and opens it.
    pub fn patterned(bytes: usize) -> Result<(Md, Nop, i32), Stop> {
        let (md, fd) = Md::patterned(bytes)?;
        sys::close(fd).must("close")?;
        let nop = Nop::before(&md)?;
        let fd = nop.open(sys::O_RDWR)?;
        Ok((md, nop, fd))
    }

    /// Has it delay every request.
    pub fn delay_ms(&self, ms: u32) -> Result<(), Stop> {
        let ms = Path::of(format_args!("{ms}"));
        self.configure(&[c"-d", ms.as_cstr(), c"-q", c"100", c"-x", c"100"])
    }

    /// Has it delay none.
    pub fn no_delay(&self) -> Result<(), Stop> {
        self.configure(&[c"-q", c"0", c"-x", c"0"])
    }

    /// Has it fail so many of a hundred requests with EIO.
    pub fn fail_percent(&self, reads: u32, writes: u32) -> Result<(), Stop> {
        let (reads, writes) =
            (Path::of(format_args!("{reads}")), Path::of(format_args!("{writes}")));
        self.configure(&[c"-e", c"5", c"-r", reads.as_cstr(), c"-w", writes.as_cstr()])
    }

    fn configure(&self, options: &[&CStr]) -> Result<(), Stop> {
        let mut words = [c""; 12];
        words[0] = c"/sbin/gnop";
        words[1] = c"configure";
        words[2..2 + options.len()].copy_from_slice(options);
        words[2 + options.len()] = self.path.as_cstr();
        let ended = tool(&words[..3 + options.len()])?;
        check!(ended == Ended::Exit(0), "gnop configure: {ended:?}");
        Ok(())
    }

    /// Opens it.
    pub fn open(&self, flags: i32) -> Result<i32, Stop> {
        open(&self.path, flags)
    }

    /// Takes it away; whether that went well.
    pub fn destroy(&self, force: bool) -> Result<bool, Stop> {
        let path = self.path.as_cstr();
        let plain = [c"/sbin/gnop", c"destroy", path];
        let forced = [c"/sbin/gnop", c"destroy", c"-f", path];
        Ok(tool(if force { &forced } else { &plain })? == Ended::Exit(0))
    }
}

impl Drop for Nop {
    fn drop(&mut self) {
        if sys::open(self.path.as_cstr(), sys::O_RDONLY, 0).map(sys::close).is_ok() {
            let _ = self.destroy(true);
        }
    }
}

/// Runs a program to its end, without its output.
pub fn tool(words: &[&CStr]) -> Result<Ended, Stop> {
    match sys::fork().must("fork")? {
        Fork::Child => {
            if let Ok(null) = sys::open(c"/dev/null", sys::O_WRONLY, 0) {
                let _ = (sys::dup2(null, 1), sys::dup2(null, 2));
            }
            let _ = sys::exec_words(words.iter().copied());
            sys::exit(127)
        }
        Fork::Parent(pid) => loop {
            match sys::wait(pid, 0) {
                Ok(Some((_, ended))) => return Ok(ended),
                Ok(None) | Err(EINTR) => {}
                Err(error) => return fail(format_args!("wait for {:?}: {error}", words[0])),
            }
        },
    }
}

/// Opens a device, which may take a moment to appear.
fn open(path: &Path, flags: i32) -> Result<i32, Stop> {
    let start = now();
    loop {
        match sys::open(path.as_cstr(), flags, 0) {
            Err(guest::errno::ENOENT) if ms_since(start) < 10_000 => sleep_ms(5),
            other => return other.must("open the disk"),
        }
    }
}

/// Writes the pattern to a disk.
pub fn fill(fd: i32, bytes: usize) -> Result<(), Stop> {
    let mut block = [0u8; 4096];
    for start in (0..bytes).step_by(block.len()) {
        for (index, byte) in block.iter_mut().enumerate() {
            *byte = pattern(start + index);
        }
        let written = sys::pwrite(fd, &block, start as i64).must("write the disk")?;
        check!(written == block.len(), "a short write");
    }
    Ok(())
}

/// Fills a buffer with what the pattern has at an offset.
pub fn put_pattern(buffer: &Region, offset: usize) {
    for index in 0..buffer.len() {
        buffer.write(index, &[pattern(offset + index)]);
    }
}

/// What a case may not leave behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gauges {
    /// Bios with a mapped buffer.
    pub mapped: Option<u64>,
    /// Bios without.
    pub unmapped: Option<u64>,
    /// Requests.
    pub queued: Option<u64>,
}

impl Gauges {
    /// As they are now.
    pub fn now() -> Gauges {
        Gauges {
            mapped: sysctl::get("vfs.aio.num_buf_aio"),
            unmapped: sysctl::get("vfs.aio.num_unmapped_aio"),
            queued: sysctl::get("vfs.aio.num_queue_count"),
        }
    }

    /// Bios of either sort.
    pub fn bios(&self) -> u64 {
        self.mapped.unwrap_or(0) + self.unmapped.unwrap_or(0)
    }
}

/// Whether it is our engine that serves.
pub fn ours() -> bool {
    sysctl::served().is_some()
}

/// Skips a case that only our engine promises.
pub fn only_ours(_test: &Test) -> Result<(), Stop> {
    if ours() { Ok(()) } else { crate::harness::skip(format_args!("not promised by the built-in")) }
}
