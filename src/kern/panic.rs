// SPDX-License-Identifier: BSD-2-Clause
//! A broken invariant ends in panic(9), with its message and place.

use core::fmt::Write;

use sys_bindings as sys;

use super::printf::Line;

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo) -> ! {
    let mut line = Line::new();
    // A message that does not fit is cut.
    let _ = write!(line, "aio_rs: {}", info.message());
    if let Some(place) = info.location() {
        let _ = write!(line, " ({}:{})", place.file(), place.line());
    }
    // SAFETY: panic(9) formats a C string, which Line gives. Nothing above can panic again.
    unsafe { sys::panic(c"%s".as_ptr(), line.as_ptr()) }
}
