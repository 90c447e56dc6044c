// SPDX-License-Identifier: BSD-2-Clause

//! A folder for the files of one unit test.

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A folder that is gone when its test ends, whichever way it does.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder; `name` tells the tests of one process apart.
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vm-{name}-{}", std::process::id()));
        // One of a process of this number that was killed.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
