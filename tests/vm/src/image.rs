// SPDX-License-Identifier: BSD-2-Clause
//! The machines there are to boot, and whether they are what they should be.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How a machine is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, and a raw image of its root file system.
    Direct {
        /// The kernel, an ELF program.
        kernel: PathBuf,
        /// The root file system.
        root: PathBuf,
    },
    /// A whole disk with its own loader.
    Disk {
        /// The image.
        image: PathBuf,
        /// Its format, as QEMU calls it.
        format: &'static str,
    },
}

/// A machine to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// "plain", "debug" or "image".
    pub name: &'static str,
    /// How.
    pub boot: Boot,
}

/// Looks for machines in a folder; an empty list when there are none.
///
/// # Errors
/// A file that is there but is not what it should be.
pub fn find(dir: &Path, which: &str) -> Result<Vec<Machine>, String> {
    let mut found = Vec::new();
    let root = dir.join("root.img");
    for (name, file) in [("plain", "kernel"), ("debug", "kernel-debug")] {
        let kernel = dir.join(file);
        if !wanted(which, name) || !kernel.is_file() || !root.is_file() {
            continue;
        }
        check_kernel(&kernel)?;
        check_root(&root)?;
        found.push(Machine { name, boot: Boot::Direct { kernel, root: root.clone() } });
    }
    if wanted(which, "image") {
        for (file, format) in [("disk.qcow2", "qcow2"), ("disk.img", "raw")] {
            let image = dir.join(file);
            if image.is_file() {
                check_disk(&image, format)?;
                found.push(Machine { name: "image", boot: Boot::Disk { image, format } });
                break;
            }
        }
    }
    Ok(found)
}

/// What to say when [`find`] found nothing.
pub fn none_at_hand(dir: &Path, which: &str) -> String {
    let what = match which {
        "plain" => "kernel and root.img",
        "debug" => "kernel-debug and root.img",
        "image" => "disk.qcow2 or disk.img",
        _ => "kernel and root.img, or disk.qcow2 or disk.img",
    };
    format!("no FreeBSD machine in {} (it would be {what}; set FREEBSD_VM)", dir.display())
}

fn wanted(which: &str, name: &str) -> bool {
    which == "both" || which == name
}

fn bytes_at(path: &Path, offset: u64, len: usize) -> Result<Vec<u8>, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let mut bytes = read().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn check_kernel(path: &Path) -> Result<(), String> {
    let head = bytes_at(path, 0, 64)?;
    let bad =
        |what: &str| Err(format!("{} is {what}: put a FreeBSD amd64 kernel there", path.display()));
    if head[..4] != *b"\x7fELF" {
        return bad("no ELF program");
    }
    let machine = u16::from_le_bytes([head[18], head[19]]);
    if head[4] != 2 || machine != 62 {
        return bad(&format!("for another architecture (ELF machine {machine})"));
    }
    if head[7] != 9 {
        return bad("not FreeBSD's");
    }
    Ok(())
}

fn check_root(path: &Path) -> Result<(), String> {
    // A UFS superblock is 8 KiB (UFS1) or 64 KiB (UFS2) into the image; its magic number is the
    // last of its 1,376 bytes.
    let magic = |offset: u64| -> Result<u32, String> {
        let bytes = bytes_at(path, offset + 1372, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    if magic(8192)? == 0x0001_1954 || magic(65536)? == 0x1954_0119 {
        return Ok(());
    }
    Err(format!("{} holds no UFS file system: make one, as with makefs -t ffs", path.display()))
}

fn check_disk(path: &Path, format: &str) -> Result<(), String> {
    let head = bytes_at(path, 0, 1024)?;
    if head[..6] == *b"\xfd7zXZ\0" {
        return Err(format!("{} is still compressed: unxz it first", path.display()));
    }
    let good = match format {
        "qcow2" => head[..4] == *b"QFI\xfb",
        _ => head[510..512] == [0x55, 0xaa] || head[512..520] == *b"EFI PART",
    };
    if good {
        return Ok(());
    }
    Err(format!(
        "{} is no bootable {format} disk: download a FreeBSD VM image for amd64",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn kernel_bytes(machine: u16, osabi: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[4] = 2;
        bytes[7] = osabi;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    fn root_bytes() -> Vec<u8> {
        let mut bytes = vec![0; 16384];
        bytes[8192 + 1372..8192 + 1376].copy_from_slice(&0x0001_1954u32.to_le_bytes());
        bytes
    }

    #[test]
    fn nothing_there() {
        let dir = Scratch::new("none");
        assert_eq!(find(&dir, "both"), Ok(vec![]));
        assert!(none_at_hand(&dir, "both").contains("FREEBSD_VM"));
    }

    #[test]
    fn kernels_and_root() {
        let dir = Scratch::new("direct");
        std::fs::write(dir.join("kernel"), kernel_bytes(62, 9)).unwrap();
        std::fs::write(dir.join("root.img"), root_bytes()).unwrap();
        let found = find(&dir, "both").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "plain");
        assert_eq!(find(&dir, "debug"), Ok(vec![]));

        std::fs::write(dir.join("kernel"), kernel_bytes(183, 9)).unwrap();
        assert!(find(&dir, "both").unwrap_err().contains("architecture"));
        std::fs::write(dir.join("kernel"), kernel_bytes(62, 0)).unwrap();
        assert!(find(&dir, "both").unwrap_err().contains("FreeBSD"));
        std::fs::write(dir.join("kernel"), b"bzImage").unwrap();
        assert!(find(&dir, "both").unwrap_err().contains("no ELF"));
        std::fs::write(dir.join("kernel"), kernel_bytes(62, 9)).unwrap();
        std::fs::write(dir.join("root.img"), vec![0; 100]).unwrap();
        assert!(find(&dir, "both").unwrap_err().contains("UFS"));
    }

    #[test]
    fn disks() {
        let dir = Scratch::new("disk");
        let image = dir.join("disk.qcow2");
        std::fs::write(&image, b"\xfd7zXZ\0").unwrap();
        assert!(find(&dir, "both").unwrap_err().contains("unxz"));
        std::fs::write(&image, b"junk").unwrap();
        assert!(find(&dir, "image").unwrap_err().contains("qcow2"));
        std::fs::write(&image, b"QFI\xfb").unwrap();
        assert_eq!(find(&dir, "image").unwrap()[0].name, "image");
    }
}
