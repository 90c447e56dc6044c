// SPDX-License-Identifier: BSD-2-Clause
//! Loading and unloading kernel modules.

use crate::Result;
use crate::sys::call;
use core::ffi::CStr;

/// kldload(2): the number of the file.
///
/// # Errors
/// EEXIST when it is loaded already, EPERM when not root or at a raised securelevel, ENOEXEC when the
/// linker or the module refused; else the module's own.
pub fn load(path: &CStr) -> Result<i32> {
    call(304, [path.as_ptr() as usize, 0, 0, 0, 0, 0]).map(|number| number as i32)
}

/// kldunloadf(2); with `force` a module's wish to be left alone is ignored, its refusal is not.
///
/// # Errors
/// EPERM as [`load`]; else the module's own.
pub fn unload(number: i32, force: bool) -> Result<()> {
    let flags = usize::from(force);
    call(444, [number as usize, flags, 0, 0, 0, 0]).map(|_| ())
}

/// kldfind(2): the number of a file that is loaded.
///
/// # Errors
/// ENOENT when it is not.
pub fn find(name: &CStr) -> Result<i32> {
    call(306, [name.as_ptr() as usize, 0, 0, 0, 0, 0]).map(|number| number as i32)
}
