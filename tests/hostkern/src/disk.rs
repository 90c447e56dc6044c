// SPDX-License-Identifier: BSD-2-Clause
//! Disk devices in memory: md(4)'s, gnop(8)'s before them, and those a run is given with `--disk`.
//!
//! A device has a struct cdev and a struct cdevsw as the modules see them. It may be slow, fail, or
//! be taken away while it has bios; then it stays until the last file that has it open is closed.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_ulong, c_void};

use crate::errno::*;
use crate::sched::{self, SECOND};
use crate::state::Held;
use crate::{bio, fault, file, mem, report, sys, vm};

/// The most bytes of one bio.
pub const MAXPHYS: usize = 1 << 20;
/// What a file system of devices says of its blocks.
const BLOCK: i32 = 512;

struct Disk {
    name: String,
    /// What is behind it; a disk before another has the other's.
    medium: u64,
    cdev: *mut sys::cdev,
    opens: usize,
    gone: bool,
    unmapped: bool,
    /// Virtual time every request takes, if not what the seed says.
    delay: Option<i64>,
    /// Reads and writes of a hundred that fail.
    failing: [u64; 2],
    /// These have moved a part before.
    partly: bool,
}

struct Medium {
    bytes: Vec<u8>,
    sector: usize,
    /// Keeps nothing, reads as zeros.
    null: bool,
}

#[derive(Default)]
struct Disks {
    disks: BTreeMap<u64, Disk>,
    media: BTreeMap<u64, Medium>,
    next: u64,
}

static DISKS: Held<Disks> =
    Held::new(Disks { disks: BTreeMap::new(), media: BTreeMap::new(), next: 1 });

/// A device that a run is given: `NAME:BYTES`, with `:faults` one that now and then fails.
#[derive(Clone)]
pub struct Spec {
    name: String,
    bytes: usize,
    faults: bool,
}

impl Spec {
    pub fn parse(text: &str) -> Option<Spec> {
        let mut words = text.split(':');
        let name = words.next().filter(|name| !name.is_empty())?.to_owned();
        let bytes = words.next()?.parse().ok()?;
        let faults = match words.next() {
            None => false,
            Some("faults") => true,
            Some(_) => return None,
        };
        words.next().is_none().then_some(Spec { name, bytes, faults })
    }

    pub fn text(&self) -> String {
        format!("{}:{}{}", self.name, self.bytes, if self.faults { ":faults" } else { "" })
    }

    /// Makes the device. Which buffers it takes comes from the seed.
    pub fn attach(&self) {
        let unmapped = sched::random(2) == 0;
        let medium = Medium { bytes: vec![0; self.bytes], sector: 512, null: false };
        let key = make(&self.name, Behind::New(medium), unmapped);
        if self.faults {
            with(key, |disk| (disk.failing, disk.partly) = ([5, 5], true));
        }
    }
}

enum Behind {
    New(Medium),
    Other(u64),
}

fn make(name: &str, behind: Behind, unmapped: bool) -> u64 {
    bio::start_enders();
    let cdev: *mut sys::cdev = mem::new_object();
    let switch: *mut sys::cdevsw = mem::new_object();
    // SAFETY: just made.
    unsafe {
        (*switch).d_flags = sys::D_DISK;
        // SAFETY: bindgen names C's function type; the signatures are the same.
        (*switch).d_strategy =
            std::mem::transmute::<*const c_void, sys::d_strategy_t>(bio::strategy_pointer());
        (*cdev).si_devsw = switch;
        (*cdev).si_iosize_max = MAXPHYS as c_int;
        if unmapped {
            (*cdev).si_flags |= sys::SI_UNMAPPED;
        }
    }
    DISKS.with(|disks| {
        let key = disks.next;
        disks.next += 1;
        let medium = match behind {
            Behind::New(medium) => {
                disks.media.insert(key, medium);
                key
            }
            Behind::Other(other) => other,
        };
        let name = name.to_owned();
        let disk = Disk {
            name,
            medium,
            cdev,
            opens: 0,
            gone: false,
            unmapped,
            delay: None,
            failing: [0, 0],
            partly: false,
        };
        disks.disks.insert(key, disk);
        key
    })
}

fn find(name: &str) -> Option<u64> {
    DISKS.with(|disks| {
        let mut found = disks.disks.iter().filter(|(_, disk)| !disk.gone && disk.name == name);
        found.next().map(|(&key, _)| key)
    })
}

fn with<R>(key: u64, action: impl FnOnce(&mut Disk) -> R) -> R {
    DISKS.with(|disks| action(disks.disks.get_mut(&key).expect("a device that is there")))
}

/// Opens a device by its path, if it is the path of one.
pub fn open(path: &std::path::Path) -> Option<u64> {
    let key = find(path.strip_prefix("/dev").ok()?.to_str()?)?;
    with(key, |disk| disk.opens += 1);
    Some(key)
}

/// Makes a new vnode a device's.
pub fn set_up(vp: *mut sys::vnode, key: u64) {
    let cdev = with(key, |disk| disk.cdev);
    // SAFETY: the caller's new vnode.
    unsafe {
        (*vp).__bindgen_anon_1.v_rdev = cdev;
        (*vp).v_bufobj.bo_bsize = BLOCK;
    }
}

/// A file that had it open is closed.
pub fn closed(key: u64) {
    with(key, |disk| disk.opens -= 1);
    bury(key);
}

/// A bio of it ended.
pub fn ended(key: u64) {
    if DISKS.with(|disks| disks.disks.contains_key(&key)) {
        bury(key);
    }
}

/// Forgets a device that is gone, when nobody has it any more.
fn bury(key: u64) {
    let dead = with(key, |disk| disk.gone && disk.opens == 0) && bio::of_disk(key) == 0;
    if !dead || with(key, |disk| references(disk.cdev)) > 0 {
        return;
    }
    let disk = DISKS.with(|disks| {
        let disk = disks.disks.remove(&key).expect("just seen");
        let used = disks.disks.values().any(|other| other.medium == disk.medium);
        if !used {
            disks.media.remove(&disk.medium);
        }
        disk
    });
    mem::free_object(disk.cdev);
}

fn references(cdev: *mut sys::cdev) -> u64 {
    // SAFETY: a device that is there.
    unsafe { (*cdev).si_threadcount }
}

/// Where threads wait for the last call into a device.
fn channel(key: u64) -> u64 {
    0x45 << 56 | key << 1 | 1
}

/// Takes a device away, also from who has it open: destroy_dev(9).
fn destroy(key: u64) {
    let cdev = with(key, |disk| {
        disk.gone = true;
        disk.cdev
    });
    // SAFETY: a device that is there; its table goes when no thread is in it.
    let switch = unsafe { std::mem::replace(&mut (*cdev).si_devsw, std::ptr::null_mut()) };
    while references(cdev) > 0 {
        sched::sleep(channel(key), false, "devdrn", None, || ());
    }
    mem::free_object(switch);
    bio::hurry(key);
    bury(key);
}

/// The device behind a vnode.
fn of(vp: *mut sys::vnode) -> Option<u64> {
    // SAFETY: the caller's vnode; others have no device.
    let cdev = unsafe {
        if (*vp).v_type != sys::VCHR {
            return None;
        }
        (*vp).__bindgen_anon_1.v_rdev
    };
    DISKS.with(|disks| disks.disks.iter().find(|(_, disk)| disk.cdev == cdev).map(|(&key, _)| key))
}

/// vn_isdisk.
pub fn is_disk(vp: *mut sys::vnode) -> bool {
    of(vp).is_some_and(|key| with(key, |disk| !disk.gone))
}

/// devvn_refthread: the device and its table, which stay until [`release_thread`].
pub fn hold_thread(vp: *mut sys::vnode) -> Option<(*mut sys::cdevsw, *mut sys::cdev)> {
    let cdev = with(of(vp)?, |disk| disk.cdev);
    // SAFETY: a device that is there.
    unsafe {
        if (*cdev).si_devsw.is_null() {
            return None;
        }
        (*cdev).si_threadcount += 1;
        Some(((*cdev).si_devsw, cdev))
    }
}

/// dev_relthread.
pub fn release_thread(cdev: *mut sys::cdev) {
    let Some(key) = key_of(cdev) else {
        report::panic("dev_relthread of a device that is none");
    };
    if references(cdev) == 0 {
        report::panic("dev_relthread without devvn_refthread");
    }
    // SAFETY: a device that is there.
    unsafe { (*cdev).si_threadcount -= 1 };
    sched::wakeup(channel(key), false);
}

fn key_of(cdev: *mut sys::cdev) -> Option<u64> {
    DISKS.with(|disks| disks.disks.iter().find(|(_, disk)| disk.cdev == cdev).map(|(&key, _)| key))
}

/// The device a bio is for, which somebody must hold, and how long it will take.
pub fn take(cdev: *mut sys::cdev) -> (u64, Option<i64>) {
    let Some(key) = key_of(cdev) else {
        report::panic("a bio for a device that is none");
    };
    if references(cdev) == 0 {
        report::panic("a driver is called without devvn_refthread");
    }
    (key, with(key, |disk| disk.delay))
}

/// Whether it takes bios that are not mapped, and the size of its sectors; `None`: it is gone.
pub fn takes_unmapped(key: u64) -> Option<(bool, usize)> {
    DISKS.with(|disks| {
        let disk = disks.disks.get(&key).filter(|disk| !disk.gone)?;
        Some((disk.unmapped, disks.media[&disk.medium].sector))
    })
}

/// Whether this transfer fails, by the seed.
pub fn failure(key: u64, writes: bool) -> Option<Errno> {
    if fault::strikes("a disk's request") {
        return Some(EIO);
    }
    let percent = with(key, |disk| disk.failing[usize::from(writes)]);
    (percent > 0 && sched::random(100) < percent).then_some(EIO)
}

/// How much a failing transfer of so many bytes moves.
pub fn part(key: u64, bytes: usize, sector: usize) -> usize {
    match with(key, |disk| disk.partly) {
        true => sched::random((bytes / sector) as u64 + 1) as usize * sector,
        false => 0,
    }
}

/// Moves bytes between a device and memory; how many, 0 at the end.
pub fn copy(key: u64, at: u64, memory: *mut u8, len: usize, writes: bool) -> Result<usize, Errno> {
    DISKS.with(|disks| {
        let disk = disks.disks.get(&key).filter(|disk| !disk.gone).ok_or(ENXIO)?;
        let medium = disks.media.get_mut(&disk.medium).expect("a device has one");
        let size = medium.bytes.len() as u64;
        if at > size {
            return Err(EIO);
        }
        let count = len.min((size - at) as usize);
        let bytes = &mut medium.bytes[at as usize..at as usize + count];
        // SAFETY: a run of mapped memory of so many bytes.
        let memory = unsafe { std::slice::from_raw_parts_mut(memory, count) };
        match (medium.null, writes) {
            (true, true) => {}
            (true, false) => memory.fill(0),
            (false, true) => bytes.copy_from_slice(memory),
            (false, false) => memory.copy_from_slice(bytes),
        }
        Ok(count)
    })
}

/// read(2) and write(2) of a device: as physio(9), one element and at most [`MAXPHYS`] at a time.
pub fn transfer(key: u64, uio: &mut sys::uio, writes: bool) -> Result<(), Errno> {
    loop {
        let index = (0..uio.uio_iovcnt as usize)
            // SAFETY: the uio has so many ranges.
            .find(|&index| unsafe { (*uio.uio_iov.add(index)).iov_len } > 0);
        let Some(index) = index.filter(|_| uio.uio_resid > 0) else { return Ok(()) };
        // SAFETY: as above.
        let len = unsafe { (*uio.uio_iov.add(index)).iov_len }.min(MAXPHYS);
        let delay = with(key, |disk| disk.delay);
        if let Some(delay) = delay {
            let until = sched::now() + delay;
            sched::sleep(channel(key) | 1 << 55, false, "physrd", Some(until), || ());
        }
        let (_, sector) = takes_unmapped(key).ok_or(ENXIO)?;
        if uio.uio_offset < 0 {
            return Err(EIO);
        }
        if !uio.uio_offset.unsigned_abs().is_multiple_of(sector as u64)
            || !len.is_multiple_of(sector)
        {
            return Err(EINVAL);
        }
        if let Some(error) = failure(key, writes) {
            return Err(error);
        }
        let mut left = len;
        let before = uio.uio_resid;
        let rest = uio.uio_resid - len as isize;
        uio.uio_resid = len as isize;
        let result = file::move_bytes(uio, writes, &mut |host, room, offset| {
            let count = copy(key, offset as u64, host, room.min(left), writes)?;
            left -= count;
            Ok(count)
        });
        uio.uio_resid += rest;
        result?;
        if (before - uio.uio_resid) < len as isize {
            return Ok(());
        }
        sched::point();
    }
}

/// fo_ioctl of files.
unsafe extern "C" fn file_ioctl(
    fp: *mut sys::file,
    command: c_ulong,
    data: *mut c_void,
    _cred: *mut sys::ucred,
    _td: *mut sys::thread,
) -> c_int {
    sched::point();
    sched::may_sleep("fo_ioctl");
    let Some(key) = file::disk_of(fp) else { return ENOTTY.0 };
    let result = match takes_unmapped(key) {
        None => Err(ENXIO),
        Some(_) if fault::strikes("fo_ioctl") => Err(EIO),
        Some((_, sector)) if command == sys::HOSTKERN_DIOCGSECTORSIZE => {
            // SAFETY: this command takes room for an int.
            unsafe { data.cast::<u32>().write(sector as u32) };
            Ok(())
        }
        Some(_) if command == sys::HOSTKERN_DIOCGFLUSH => flush(fp, key),
        Some(_) => Err(ENOTTY),
    };
    sched::point();
    code(result)
}

fn flush(fp: *mut sys::file, key: u64) -> Result<(), Errno> {
    // SAFETY: the caller has a reference.
    if unsafe { (*fp).f_flag } & sys::FWRITE == 0 {
        return Err(EPERM);
    }
    let until = sched::now() + with(key, |disk| disk.delay).unwrap_or(SECOND / 1000);
    sched::sleep(channel(key) | 1 << 55, false, "flush", Some(until), || ());
    match failure(key, true) {
        Some(error) => Err(error),
        None => takes_unmapped(key).map(|_| ()).ok_or(ENXIO),
    }
}

/// The routine, for a file's table.
pub fn fo_ioctl() -> sys::fo_ioctl_t {
    // SAFETY: bindgen names C's function type; the signatures are the same.
    unsafe { std::mem::transmute(file_ioctl as *const ()) }
}

// md(4).

const MD_MALLOC: u32 = 0;
const MD_NULL: u32 = 4;
const MD_AUTOUNIT: u32 = 4;
const MD_FORCE: u32 = 0x20;
/// The size of struct md_ioctl, and its commands.
const MD_IOCTL: usize = 448;
const MDIOCATTACH: u64 = 0xc000_0000 | (MD_IOCTL as u64) << 16 | (b'm' as u64) << 8;
const MDIOCDETACH: u64 = MDIOCATTACH | 1;

/// ioctl(2) of /dev/mdctl.
pub fn control(command: u64, at: u64) -> Result<(), Errno> {
    let mut bytes = vm::read_bytes(at, MD_IOCTL)?;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (unit, kind, sector, options) = (word(4), word(8), word(32), word(36));
    let size = i64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
    match command {
        MDIOCATTACH => {
            let unit = (options & MD_AUTOUNIT == 0).then_some(unit);
            let unit = attach(unit, kind, usize::try_from(size).map_err(|_| EINVAL)?, sector)?;
            bytes[4..8].copy_from_slice(&unit.to_le_bytes());
            vm::copyout(bytes.as_ptr(), at, bytes.len())
        }
        MDIOCDETACH => detach(unit, options & MD_FORCE != 0),
        _ => Err(ENOTTY),
    }
}

fn attach(unit: Option<u32>, kind: u32, bytes: usize, sector: u32) -> Result<u32, Errno> {
    let sector = if sector == 0 { 512 } else { sector as usize };
    if bytes == 0 || !bytes.is_multiple_of(sector) || !matches!(kind, MD_MALLOC | MD_NULL) {
        return Err(EINVAL);
    }
    let taken = |unit: u32| find(&format!("md{unit}")).is_some();
    let unit = match unit {
        Some(unit) if taken(unit) => return Err(EBUSY),
        Some(unit) => unit,
        None => (0..).find(|&unit| !taken(unit)).expect("there are many"),
    };
    let null = kind == MD_NULL;
    let medium = Medium { bytes: vec![0; bytes], sector, null };
    make(&format!("md{unit}"), Behind::New(medium), !null);
    Ok(unit)
}

fn detach(unit: u32, force: bool) -> Result<(), Errno> {
    let key = find(&format!("md{unit}")).ok_or(ENOENT)?;
    if !force && with(key, |disk| disk.opens) > 0 {
        return Err(EBUSY);
    }
    let medium = with(key, |disk| disk.medium);
    destroy(key);
    // What was before it goes with it.
    loop {
        let next = DISKS.with(|disks| {
            let mut others =
                disks.disks.iter().filter(|(_, its)| !its.gone && its.medium == medium);
            others.next().map(|(&key, _)| key)
        });
        match next {
            Some(key) => destroy(key),
            None => return Ok(()),
        }
    }
}

// What mdconfig(8) and gnop(8) do, for `tools`.

/// The value of an option.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1).copied())
}

fn size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(['k', 'm', 'g']);
    let scale = match text.as_bytes().last()? {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => 0,
    };
    Some(digits.parse::<usize>().ok()? << scale)
}

pub fn mdconfig(words: &[&str]) -> Option<()> {
    let unit = option(words, "-u").and_then(|text| text.parse().ok());
    if words.contains(&"-d") {
        let force = option(words, "-o") == Some("force");
        return detach(unit?, force).ok();
    }
    let kind = match option(words, "-t")? {
        "malloc" => MD_MALLOC,
        "null" => MD_NULL,
        _ => return None,
    };
    let sector = option(words, "-S").map_or(Some(512), |text| text.parse().ok())?;
    attach(unit, kind, size(option(words, "-s")?)?, sector).ok().map(|_| ())
}

pub fn gnop(words: &[&str]) -> Option<()> {
    let device = words.last()?.strip_prefix("/dev/")?;
    let key = find(device)?;
    let number = |name: &str| option(words, name).and_then(|text| text.parse::<u64>().ok());
    match *words.get(1)? {
        "create" => {
            let (medium, unmapped) = with(key, |disk| (disk.medium, disk.unmapped));
            make(&format!("{device}.nop"), Behind::Other(medium), unmapped);
        }
        "configure" => {
            let [reads, writes] = with(key, |disk| disk.failing);
            let failing = [number("-r").unwrap_or(reads), number("-w").unwrap_or(writes)];
            with(key, |disk| disk.failing = failing);
            if let Some(ms) = number("-d") {
                with(key, |disk| disk.delay = Some(ms as i64 * (SECOND / 1000)));
            }
            if number("-q") == Some(0) {
                with(key, |disk| disk.delay = None);
            }
        }
        "destroy" => {
            if !words.contains(&"-f") && with(key, |disk| disk.opens) > 0 {
                return None;
            }
            destroy(key);
        }
        _ => return None,
    }
    Some(())
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    DISKS.with(|disks| {
        let mut lines = Vec::new();
        for disk in disks.disks.values() {
            if references(disk.cdev) > 0 {
                lines.push(format!("{} has {} references", disk.name, references(disk.cdev)));
            }
            if disk.gone {
                lines.push(format!("{} is gone, but {} have it open", disk.name, disk.opens));
            }
        }
        lines
    })
}
