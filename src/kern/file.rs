// SPDX-License-Identifier: BSD-2-Clause
//! Open files: owned references, what kind they are, and reading and writing at an offset.

use core::ffi::c_int;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::kproc::Worker;
use super::proc::Curthread;
use super::uio::Buffer;
use crate::model::Errno;

/// An owned reference to an open file. Dropping the last one closes it, which may sleep.
pub struct File(NonNull<sys::file>);

// SAFETY: files are counted and lock themselves.
unsafe impl Send for File {}

/// What sort of file it is, as far as asynchronous I/O is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file or directory of a local file system: I/O ends in bounded time.
    Local,
    /// A disk device.
    Disk,
    /// A socket: requests wait in its queues, and take no worker meanwhile.
    Socket,
    /// Another type that queues requests itself.
    Queues,
    /// A pipe or FIFO whose requests are parked (`vfs.aio.rs.park`). Nothing is this by itself.
    Pipe,
    /// Anything else: I/O may take for ever.
    Unsafe,
}

/// What the descriptor must allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Open for reading, with CAP_PREAD.
    Pread,
    /// Open for writing, with CAP_PWRITE.
    Pwrite,
    /// Open, with CAP_FSYNC.
    Fsync,
    /// Open.
    Any,
}

impl File {
    /// Looks a descriptor of the current process up.
    ///
    /// # Errors
    /// EBADF: not open, or not for this. ENOTCAPABLE: the descriptor's rights (rights(4)).
    pub fn get(td: Curthread, fd: i32, access: Access) -> Result<File, Errno> {
        let mut fp = core::ptr::null_mut();
        // SAFETY: fget takes the current thread and constant rights, and returns a reference.
        let code = unsafe {
            match access {
                Access::Pread => sys::fget_read(
                    td.as_ptr(),
                    fd,
                    (&raw const sys::cap_pread_rights).cast_mut(),
                    &mut fp,
                ),
                Access::Pwrite => sys::fget_write(
                    td.as_ptr(),
                    fd,
                    (&raw const sys::cap_pwrite_rights).cast_mut(),
                    &mut fp,
                ),
                Access::Fsync => sys::fget(
                    td.as_ptr(),
                    fd,
                    (&raw const sys::cap_fsync_rights).cast_mut(),
                    &mut fp,
                ),
                Access::Any => {
                    sys::fget(td.as_ptr(), fd, (&raw const sys::cap_no_rights).cast_mut(), &mut fp)
                }
            }
        };
        Errno::check(code)?;
        NonNull::new(fp).map(File).ok_or(Errno::EBADF)
    }

    /// The socket behind it.
    pub(super) fn socket(&self) -> Option<NonNull<sys::socket>> {
        // SAFETY: the reference is ours; f_type and, for a socket, f_data are set before a file is
        // shared and stay.
        let fp = unsafe { self.0.as_ref() };
        if u32::try_from(fp.f_type) != Ok(sys::DTYPE_SOCKET) {
            return None;
        }
        NonNull::new(fp.f_data.cast())
    }

    /// The pipe behind it.
    pub(super) fn pipe(&self) -> Option<NonNull<sys::pipe>> {
        // SAFETY: the reference is ours; f_ops and, for a pipe, f_data are set before a file is
        // shared and stay.
        let fp = unsafe { self.0.as_ref() };
        if fp.f_ops.addr() != (&raw const sys::pipeops).addr() {
            return None;
        }
        NonNull::new(fp.f_data.cast())
    }

    /// Whether it is a pipe or FIFO.
    pub fn is_pipe(&self) -> bool {
        self.pipe().is_some()
    }

    /// Whether calls on it do not wait (O_NONBLOCK).
    pub fn is_nonblocking(&self) -> bool {
        // SAFETY: the reference is ours; the kernel reads the flags without a lock too.
        let flags = unsafe { (&raw const (*self.0.as_ptr()).f_flag).read_volatile() };
        flags & sys::FNONBLOCK != 0
    }

    /// The credential it was opened with, valid as long as this is.
    pub(super) fn cred(&self) -> *mut sys::ucred {
        // SAFETY: the reference is ours; f_cred is set before a file is shared.
        unsafe { self.0.as_ref().f_cred }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::file {
        self.0.as_ptr()
    }

    pub(super) fn vnode(&self) -> Option<NonNull<sys::vnode>> {
        // SAFETY: the reference is ours; f_vnode and f_type are set before a file is shared.
        let (fp, vnode_type) = unsafe { (self.0.as_ref(), sys::DTYPE_VNODE) };
        if u32::try_from(fp.f_type) != Ok(vnode_type) {
            return None;
        }
        NonNull::new(fp.f_vnode)
    }

    /// Names the open file; unique while there are references to it.
    pub fn id(&self) -> u64 {
        self.0.addr().get() as u64
    }

    /// Names what the file is of, for requests of several open files; unique while one is open. 0:
    /// nothing that has a name.
    pub fn vnode_id(&self) -> u64 {
        self.vnode().map_or(0, |vp| vp.addr().get() as u64)
    }

    /// Whether there is a vnode behind it, of whatever type the file is.
    pub fn has_vnode(&self) -> bool {
        // SAFETY: the reference is ours; f_vnode is set before a file is shared.
        unsafe { !self.0.as_ref().f_vnode.is_null() }
    }

    /// Whether it is a kqueue, which its last close looks for in a live process.
    pub fn is_kqueue(&self) -> bool {
        // SAFETY: the reference is ours; f_type is set before a file is shared.
        u32::try_from(unsafe { self.0.as_ref() }.f_type) == Ok(sys::DTYPE_KQUEUE)
    }

    /// Whether it was opened with O_PATH.
    pub fn is_path(&self) -> bool {
        // SAFETY: f_ops is set before a file is shared.
        unsafe { self.0.as_ref().f_ops }.addr() == (&raw const sys::path_fileops).addr()
    }

    /// Whether offsets below 0 mean something: on character devices.
    pub fn is_character_device(&self) -> bool {
        // SAFETY: f_vnode, where there is one, is referenced by the file.
        unsafe {
            NonNull::new(self.0.as_ref().f_vnode)
                .is_some_and(|vp| u32::from(vp.as_ref().v_type) == u32::from(sys::VCHR))
        }
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        // SAFETY: the flag does not change while the file is open.
        unsafe { self.0.as_ref().f_flag & sys::FWRITE != 0 }
    }

    /// What kind of file it is.
    #[inline]
    pub fn kind(&self) -> Kind {
        // SAFETY: f_ops is set before a file is shared and points to constant tables.
        if unsafe { (*self.0.as_ref().f_ops).fo_aio_queue }.is_some() {
            return if self.socket().is_some() { Kind::Socket } else { Kind::Queues };
        }
        let Some(vp) = self.vnode() else { return Kind::Unsafe };
        if self.is_disk() {
            return Kind::Disk;
        }
        // SAFETY: the file references the vnode. v_mount may become null when it is revoked, and
        // the mount, while it can be seen here, is kept by the open file.
        unsafe {
            let kind = u32::from(vp.as_ref().v_type);
            if kind != u32::from(sys::VREG) && kind != u32::from(sys::VDIR) {
                return Kind::Unsafe;
            }
            let mount = (&raw const (*vp.as_ptr()).v_mount).read_volatile();
            match mount.as_ref() {
                Some(mount) if mount.mnt_flag & u64::from(sys::MNT_LOCAL) == 0 => Kind::Unsafe,
                _ => Kind::Local,
            }
        }
    }

    /// Whether it is a disk device.
    pub fn is_disk(&self) -> bool {
        // SAFETY: the file references the vnode, whose type does not become a device's; vn_isdisk
        // takes what locks it needs.
        self.vnode().is_some_and(|vp| unsafe {
            u32::from(vp.as_ref().v_type) == u32::from(sys::VCHR) && sys::vn_isdisk(vp.as_ptr())
        })
    }

    /// Reads into, or writes from, the user's buffer at `offset`, or where the file is (which moves
    /// it), with the file's credential, as
    /// the worker `td`, who is in the user's address space. Sleeps.
    ///
    /// Returns the bytes moved, how it ended (both may be there), and where in the file the rest would
    /// have ended.
    pub fn transfer(
        &self,
        worker: &Worker,
        buffer: &mut Buffer,
        write: bool,
        offset: Option<i64>,
    ) -> Transferred {
        let td = worker.thread().as_ptr();
        if !write && buffer.len() == 0 {
            return Transferred { moved: 0, end: Ok(()), reach: 0 };
        }
        if write && self.vnode().is_some() {
            // SAFETY: may sleep; no lock is held.
            unsafe { sys::bwillwrite() };
        }
        let flags = if offset.is_some() { sys::FOF_OFFSET as c_int } else { 0 };
        let (code, moved, reach) = buffer.with_uio(write, offset.unwrap_or(0), td, |uio| {
            // SAFETY: the uio is of this direction, td is the current thread.
            unsafe { self.move_uio(uio, write, flags, td) }
        });
        Transferred { moved, end: Errno::check(code), reach }
    }

    /// As [`File::transfer`], with memory of the kernel's. `td` is the current thread. Sleeps.
    pub(super) fn transfer_kernel(
        &self,
        data: &mut [u8],
        write: bool,
        offset: i64,
        td: *mut sys::thread,
    ) -> (usize, Result<(), Errno>) {
        super::uio::with_kernel_uio(data, write, offset, td, |uio| {
            // SAFETY: as in transfer.
            unsafe { self.move_uio(uio, write, sys::FOF_OFFSET as c_int, td) }
        })
    }

    /// Calls the file's own function, with its credential. Sleeps.
    ///
    /// # Safety
    /// `uio` is complete and of that direction; `td` is the current thread.
    unsafe fn move_uio(
        &self,
        uio: *mut sys::uio,
        write: bool,
        flags: c_int,
        td: *mut sys::thread,
    ) -> c_int {
        let fp = self.0.as_ptr();
        // SAFETY: the file is referenced, its credential with it; the rest is the caller's promise.
        unsafe {
            let cred = (*fp).f_cred;
            if write {
                sys::aio_rs_fo_write(fp, uio, cred, flags, td)
            } else {
                sys::aio_rs_fo_read(fp, uio, cred, flags, td)
            }
        }
    }
}

/// What came of a transfer.
pub struct Transferred {
    /// Bytes.
    pub moved: usize,
    pub end: Result<(), Errno>,
    /// Where in the file the bytes that were not moved would have ended.
    pub reach: u64,
}

impl File {
    /// Brings the file's data, and with `data_only` false all its metadata, to stable storage, as a
    /// worker. Sleeps.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self, worker: &Worker, data_only: bool) -> Result<(), Errno> {
        let td = worker.thread().as_ptr();
        // SAFETY: the reference is ours; f_vnode is set before a file is shared.
        let Some(vp) = NonNull::new(unsafe { self.0.as_ref().f_vnode }) else { return Ok(()) };
        let vp = vp.as_ptr();
        loop {
            let mut mount = core::ptr::null_mut();
            let flags = (sys::V_WAIT | sys::V_PCATCH) as c_int;
            // SAFETY: the file references the vnode; no lock is held.
            Errno::check(unsafe { sys::vn_start_write(vp, &mut mount, flags) })?;
            // SAFETY: locked, used, unlocked; td is the current thread. LK_RETRY does not fail.
            let code = unsafe {
                sys::aio_rs_vn_lock(vp);
                sys::vnode_pager_clean_async(vp);
                let code = if data_only {
                    sys::aio_rs_vop_fdatasync(vp, td)
                } else {
                    sys::aio_rs_vop_fsync(vp, td)
                };
                sys::aio_rs_vop_unlock(vp);
                sys::vn_finished_write(mount);
                code
            };
            // The file system gave its lock up in between and wants to be asked again (F16).
            if Errno::check(code) != Err(Errno::ERELOOKUP) {
                return Errno::check(code);
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let td = super::proc::curthread();
        // SAFETY: the reference is ours, td is the current thread. The result is what close(2)
        // would report to nobody.
        unsafe { sys::aio_rs_fdrop(self.0.as_ptr(), td) };
    }
}
