// SPDX-License-Identifier: BSD-2-Clause
//! `Box`, `Vec` and `Arc` over malloc(9), type `aio_rs`.
//!
//! # Context
//! Every allocation may sleep (M_WAITOK) and so never fails; none may be made with a mutex held.
//! WITNESS reports one that is. Freeing never sleeps.

use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_int;

use sys_bindings as sys;

struct Malloc;

/// What malloc(9) aligns every allocation to on amd64.
const MIN_ALIGN: usize = 16;

// SAFETY: malloc(9) with M_WAITOK returns memory of at least the asked size, aligned to MIN_ALIGN;
// malloc_aligned(9) to the asked alignment. free(9) takes both. Neither unwinds.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let flags = sys::M_WAITOK as c_int;
        let kind = (&raw mut sys::M_AIO_RS).cast();
        if layout.align() <= MIN_ALIGN {
            // SAFETY: the type outlives the module; the caller may sleep, as the file says.
            unsafe { sys::malloc(layout.size(), kind, flags).cast() }
        } else {
            // SAFETY: as above; a layout's alignment is a power of two.
            unsafe { sys::malloc_aligned(layout.size(), layout.align(), kind, flags).cast() }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let flags = (sys::M_WAITOK | sys::M_ZERO) as c_int;
        let kind = (&raw mut sys::M_AIO_RS).cast();
        if layout.align() <= MIN_ALIGN {
            // SAFETY: as in alloc.
            unsafe { sys::malloc(layout.size(), kind, flags).cast() }
        } else {
            // SAFETY: as in alloc.
            unsafe { sys::malloc_aligned(layout.size(), layout.align(), kind, flags).cast() }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _layout: Layout) {
        // SAFETY: the caller got it from alloc with this type.
        unsafe { sys::free(memory.cast(), (&raw mut sys::M_AIO_RS).cast()) }
    }
}

#[global_allocator]
static MALLOC: Malloc = Malloc;
