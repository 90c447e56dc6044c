// SPDX-License-Identifier: BSD-2-Clause
//! bio(9): transfers between a device and pages of a process, that end in a context of the driver's.
//!
//! A [`Batch`] owns all of a transfer: pages held, windows onto them, bios, and the owner's own
//! value. Until it is launched it is an ordinary value; then it belongs to its bios and the thread
//! that launches it, each with a share. Whoever gives the last share up gets the batch back, as
//! [`Landed`]:
//!
//! ```text
//! submitter                          driver's threads
//! shares := bios + 1
//! strategy(bio 0)                    done(bio 0): shares -= 1
//!   (done inside: shares -= 1)
//! strategy(bio 1) ...                done(bio 1): shares -= 1
//! device reference given back
//! shares -= 1                        whoever reaches 0 has the batch
//! ```
//! So the driver's last instruction before the device reference is given back still finds the file
//! open, and nothing is looked at after it was given away.
//!
//! # Context
//! What happens in `done` never sleeps: unholding pages, unmapping, freeing.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use sys_bindings as sys;
use sys_bindings::gate::aio_rs_gate_bio_done;

use super::disk::Device;
use super::proc::Curthread;
use super::user::UserPtr;
use crate::model::Errno;

const PAGE_SIZE: usize = 4096;

/// One range of a process's memory that is one bio.
#[derive(Clone, Copy)]
pub struct Piece {
    pub base: UserPtr,
    /// Bytes; not 0.
    pub len: usize,
}

impl Piece {
    /// Where in its first page it begins.
    fn page_offset(self) -> usize {
        self.base.address() as usize % PAGE_SIZE
    }

    /// How many pages it touches.
    fn pages(self) -> usize {
        (self.page_offset() + self.len).div_ceil(PAGE_SIZE)
    }
}

/// Pages of processes that stay where they are, whatever becomes of their mappings.
struct Held(Vec<sys::vm_page_t>);

// SAFETY: pages are held for no thread.
unsafe impl Send for Held {}

impl Held {
    /// Holds the pages of `piece` in the current process, read in if need be, for a transfer into
    /// them or out of them. There is room for them. Sleeps.
    ///
    /// # Errors
    /// EFAULT: not all of it is mapped in that way.
    fn hold(
        &mut self,
        td: Curthread,
        piece: Piece,
        into: bool,
    ) -> Result<&[sys::vm_page_t], Errno> {
        let access = sys::AIO_RS_VM_PROT_READ | if into { sys::AIO_RS_VM_PROT_WRITE } else { 0 };
        let before = self.0.len();
        let room = self.0.spare_capacity_mut();
        let count = piece.pages();
        assert!(count <= room.len(), "{count} pages, room for {}", room.len());
        // SAFETY: the current process has an address space; the array has room for all pages of
        // the range, which is what the count says.
        let held = unsafe {
            let map = &raw mut (*(*(*td.as_ptr()).td_proc).p_vmspace).vm_map;
            sys::vm_fault_quick_hold_pages(
                map,
                piece.base.address() as sys::vm_offset_t,
                piece.len as sys::vm_size_t,
                access,
                room.as_mut_ptr().cast(),
                count as i32,
            )
        };
        let Ok(held) = usize::try_from(held) else { return Err(Errno::EFAULT) };
        // SAFETY: so many were filled in.
        unsafe { self.0.set_len(before + held) };
        Ok(&self.0[before..])
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: all of them are held by us, and nobody uses them any more.
        unsafe { sys::vm_page_unhold_pages(self.0.as_mut_ptr(), self.0.len() as i32) }
    }
}

/// Kernel addresses that pages are mapped at.
///
/// Not one of the kernel's physical buffers: there are few, some of which idle in other CPUs' caches,
/// and who sleeps for several may sleep for ever.
struct Window {
    at: sys::vm_offset_t,
    pages: usize,
}

impl Window {
    /// Maps `pages`.
    ///
    /// # Errors
    /// EAGAIN: there are no addresses.
    fn onto(pages: &[sys::vm_page_t]) -> Result<Window, Errno> {
        let size = pages.len() * PAGE_SIZE;
        // SAFETY: addresses of the kernel's own, or 0.
        let at = unsafe { sys::kva_alloc(size as sys::vm_size_t) };
        if at == 0 {
            return Err(Errno::EAGAIN);
        }
        // SAFETY: as many addresses, which are ours; the pages are held.
        unsafe { sys::pmap_qenter(at, pages.as_ptr().cast_mut(), pages.len() as i32) };
        Ok(Window { at, pages: pages.len() })
    }

    fn data(&self) -> *mut core::ffi::c_char {
        core::ptr::with_exposed_provenance_mut(self.at as usize)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped by onto; nobody uses the addresses any more.
        unsafe {
            sys::pmap_qremove(self.at, self.pages as i32);
            sys::kva_free(self.at, (self.pages * PAGE_SIZE) as sys::vm_size_t);
        }
    }
}

/// An owned bio.
struct Bio(NonNull<sys::bio>);

// SAFETY: kernel memory that belongs to no thread.
unsafe impl Send for Bio {}

impl Bio {
    /// Allocates one, all zeros. Sleeps.
    fn new() -> Bio {
        // SAFETY: may sleep; it does not fail.
        let Some(bp) = NonNull::new(unsafe { sys::g_alloc_bio() }) else {
            panic!("g_alloc_bio failed")
        };
        Bio(bp)
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: ours, and not with the driver.
        unsafe { sys::g_destroy_bio(self.0.as_ptr()) }
    }
}

/// See the file's text. Fields are dropped in this order: nothing before what refers to it.
pub struct Batch<T> {
    shares: AtomicUsize,
    bios: Vec<Bio>,
    windows: Vec<Window>,
    pages: Held,
    /// Until it has been launched.
    device: Option<Device>,
    pub owner: T,
}

/// What a transfer came to.
pub struct Moved {
    /// Bytes moved without a gap from the start.
    pub bytes: usize,
    /// Why the rest was not, if not for the end of the medium.
    pub error: Option<Errno>,
    /// Bytes moved in all.
    pub total: usize,
}

/// A batch that is done.
pub struct Landed<T>(Box<Batch<T>>);

impl<T: Send> Batch<T> {
    /// Makes all of a transfer of the current process's `pieces`, one after the other from `offset`
    /// bytes on; mapped for a device that does not take them otherwise. Sleeps.
    ///
    /// # Errors
    /// EFAULT: a piece is not all mapped, or not writable for a read. EAGAIN: no kernel addresses.
    pub fn prepare(
        td: Curthread,
        device: Device,
        write: bool,
        offset: i64,
        pieces: impl Iterator<Item = Piece> + Clone,
        owner: T,
    ) -> Result<Box<Batch<T>>, Errno> {
        let (count, pages) =
            pieces.clone().fold((0, 0), |(count, pages), piece| (count + 1, pages + piece.pages()));
        let mut held = Held(Vec::with_capacity(pages));
        let mut bios = Vec::with_capacity(count);
        let mapped = !device.takes_unmapped();
        let mut windows = Vec::with_capacity(if mapped { count } else { 0 });
        let mut offset = offset;
        for piece in pieces {
            let Piece { len, .. } = piece;
            let pages = held.hold(td, piece, !write)?;
            let bio = Bio::new();
            // SAFETY: the bio is ours; bytes of one piece fit its fields.
            let bp = unsafe { &mut *bio.0.as_ptr() };
            bp.bio_cmd = if write { sys::BIO_WRITE } else { sys::BIO_READ } as u16;
            bp.bio_dev = device.as_ptr();
            bp.bio_offset = offset;
            bp.bio_length = len as i64;
            bp.bio_bcount = len as i64;
            bp.bio_done = Some(aio_rs_gate_bio_done);
            if mapped {
                let window = Window::onto(pages)?;
                bp.bio_data = window.data().wrapping_add(piece.page_offset());
                windows.push(window);
            } else {
                // The array does not move: it was made with room for all.
                bp.bio_ma = pages.as_ptr().cast_mut();
                bp.bio_ma_n = pages.len() as i32;
                bp.bio_ma_offset = piece.page_offset() as i32;
                // SAFETY: set at boot.
                bp.bio_data = unsafe { sys::unmapped_buf };
                bp.bio_flags |= sys::BIO_UNMAPPED as u16;
            }
            bios.push(bio);
            offset = offset.wrapping_add_unsigned(len as u64);
        }
        let (shares, pages, device) = (AtomicUsize::new(0), held, Some(device));
        Ok(Box::new(Batch { shares, bios, windows, pages, device, owner }))
    }

    /// How many bios it is, and whether they are mapped.
    pub fn bios(&self) -> (usize, bool) {
        (self.bios.len(), !self.windows.is_empty())
    }

    /// Hands all bios to the driver. Returns the batch if it is done already and nobody else has
    /// it; else [`done`] will. Sleeps, if the driver does.
    pub fn launch(mut self: Box<Self>) -> Option<Landed<T>> {
        let Some(device) = self.device.take() else { panic!("a batch was launched twice") };
        *self.shares.get_mut() = self.bios.len() + 1;
        let batch = Box::into_raw(self);
        // SAFETY: our share keeps the batch until it is given up below; the driver's threads touch
        // nothing of it but the shares.
        let bios = unsafe { &(*batch).bios };
        for bio in bios {
            // SAFETY: the bio is complete but for this, and nobody else's yet.
            unsafe { (*bio.0.as_ptr()).bio_caller1 = batch.cast() };
        }
        for bio in bios {
            // SAFETY: the bio is for this device, and stays until the batch is dropped.
            unsafe { device.strategy(bio.0.as_ptr()) };
        }
        drop(device);
        // SAFETY: this thread's share, given up once.
        unsafe { give_up_share(batch) }
    }
}

/// Gives a share of a batch up. Returns the batch if it was the last.
///
/// # Safety
/// `batch` came from `launch`; the share is the caller's, who does not look at the batch after that.
unsafe fn give_up_share<T>(batch: *mut Batch<T>) -> Option<Landed<T>> {
    // SAFETY: the share keeps the batch. Acquire and release: what the others wrote is seen by the
    // last.
    if unsafe { (*batch).shares.fetch_sub(1, Ordering::AcqRel) } > 1 {
        return None;
    }
    // SAFETY: made from a box, and nobody has a share.
    Some(Landed(unsafe { Box::from_raw(batch) }))
}

/// Takes a bio that is done. Returns its batch if that is done with it. Does not sleep.
///
/// # Safety
/// `bp` was launched by a batch of this owner's type, and this is called once for it, by its done
/// routine.
pub unsafe fn done<T: Send>(bp: *mut sys::bio) -> Option<Landed<T>> {
    // SAFETY: launch set it, and a driver leaves it alone.
    let batch = unsafe { (*bp).bio_caller1 }.cast::<Batch<T>>();
    // SAFETY: a bio's share, given up once.
    unsafe { give_up_share(batch) }
}

impl<T> Landed<T> {
    /// Lets all go but the owner, and says what the transfer came to. Does not sleep, if dropping
    /// the owner does not.
    ///
    /// Errors count in the order of the pieces, the first one wins. What follows a piece that moved
    /// in part without an error lies beyond the end of the medium, and its errors mean nothing.
    pub fn finish(self) -> (T, Moved) {
        let mut moved = Moved { bytes: 0, error: None, total: 0 };
        let mut ended = false;
        for bio in &self.0.bios {
            // SAFETY: the bio is ours again.
            let bp = unsafe { bio.0.as_ref() };
            let wanted = bp.bio_bcount.max(0);
            let count = (wanted - bp.bio_resid).clamp(0, wanted);
            moved.total += count as usize;
            if ended {
                continue;
            }
            if u32::from(bp.bio_flags) & sys::BIO_ERROR != 0 {
                let error = Errno::check(bp.bio_error).err();
                moved.error = Some(error.unwrap_or(Errno::EIO));
                ended = true;
                continue;
            }
            moved.bytes += count as usize;
            ended = count < wanted;
        }
        let Batch { owner, bios, windows, pages, .. } = *self.0;
        drop(bios);
        drop(windows);
        drop(pages);
        (owner, moved)
    }
}
