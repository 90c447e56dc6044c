// SPDX-License-Identifier: BSD-2-Clause
//! Numbers from and to sysctl(8), and the counters of the engine under test.

use crate::Result;
use crate::errno::EINVAL;
use crate::sys;

/// Reads an integer of four or eight bytes, or a truth value of one; `None` when there is no such sysctl.
pub fn get(name: &str) -> Option<u64> {
    let mut value = [0; 8];
    match sys::sysctlbyname(name, &mut value, &[]).ok()? {
        1 => Some(u64::from(value[0])),
        4 => Some(u64::from(u32::from_le_bytes(value[..4].try_into().ok()?))),
        8 => Some(u64::from_le_bytes(value)),
        _ => None,
    }
}

/// Sets a sysctl of type int.
///
/// # Errors
/// EPERM when not root, ENOENT when there is no such sysctl.
pub fn set(name: &str, value: i32) -> Result<()> {
    sys::sysctlbyname(name, &mut [], &value.to_le_bytes()).map(|_| ())
}

/// Sets a sysctl and puts the old value back when dropped.
pub struct Setting {
    name: &'static str,
    old: i32,
}

impl Setting {
    /// Sets the value.
    ///
    /// # Errors
    /// Those of [`set`]; EINVAL when it is no integer.
    pub fn new(name: &'static str, value: i32) -> Result<Self> {
        let old = get(name).and_then(|old| i32::try_from(old).ok()).ok_or(EINVAL)?;
        set(name, value)?;
        Ok(Self { name, old })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = set(self.name, self.old);
    }
}

/// Requests that our engine completed since it was loaded; `None` when it is not loaded.
pub fn served() -> Option<u64> {
    get("vfs.aio.rs.served")
}

/// Prints a number that may not be there.
pub struct Maybe(pub Option<u64>);

impl core::fmt::Display for Maybe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number}"),
            None => f.write_str("-"),
        }
    }
}
