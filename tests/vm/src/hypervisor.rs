// SPDX-License-Identifier: BSD-2-Clause
//! The command lines of QEMU and bhyve. In both, the guest's disks are vtbd0 (its own), vtbd1
//! (modules, programs and the plan), vtbd2 (reports, raw), vtbd3 (scratch) and vtbd4 (empty), and its
//! console is the first serial port, on our standard input and output.
//!
//! bhyve could not be tried where this was written; its line is checked against bhyve(8) only.

use crate::image::{Boot, Machine};
use std::path::{Path, PathBuf};

/// The disks that we make.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Modules, programs and the plan; read only.
    pub files: PathBuf,
    /// Where the guest writes its report.
    pub report: PathBuf,
    /// An empty file system. What is written to it is thrown away.
    pub scratch: PathBuf,
    /// Nothing: for a pool, or to be read and written raw. Thrown away too.
    pub raw: PathBuf,
}

/// What the machine is to have.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Processors.
    pub smp: u32,
    /// Memory in MiB.
    pub mem: u32,
    /// Count instructions, each of 2 to this power nanoseconds.
    pub icount: Option<u8>,
}

/// QEMU's arguments.
pub fn qemu(machine: &Machine, disks: &Disks, size: Size, kvm: bool, kenv: &str) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
    add(&["-m", &size.mem.to_string(), "-smp", &size.smp.to_string()]);
    if kvm {
        add(&["-accel", "kvm", "-cpu", "host"]);
    } else if let Some(shift) = size.icount {
        // Time is what instructions make it; an idle machine goes to the next timer at once. Counting
        // takes one thread, and so one processor.
        add(&["-accel", "tcg,thread=single", "-cpu", "max,la57=off"]);
        add(&["-icount", &format!("shift={shift},sleep=off")]);
    } else {
        // "max" has SMAP, so a kernel that touches user memory without care is caught.
        add(&[
            "-accel",
            if size.smp > 1 { "tcg,thread=multi" } else { "tcg" },
            "-cpu",
            "max,la57=off",
        ]);
    }
    // Without it the guest waits for entropy at boot.
    add(&["-device", "virtio-rng-pci"]);
    let mut drive = |path: &Path, format: &str, more: &str| {
        // QEMU wants a comma in a file name doubled.
        let file = path.display().to_string().replace(',', ",,");
        add(&["-drive", &format!("file={file},format={format},if=virtio{more}")]);
    };
    // A throw-away overlay: the image itself is never written.
    match &machine.boot {
        Boot::Direct { root, .. } => drive(root, "raw", ",snapshot=on"),
        Boot::Disk { image, format } => drive(image, format, ",snapshot=on"),
    }
    drive(&disks.files, "raw", ",readonly=on");
    drive(&disks.report, "raw", ",cache=writethrough");
    drive(&disks.scratch, "raw", ",snapshot=on");
    drive(&disks.raw, "raw", ",snapshot=on");
    if let Boot::Direct { kernel, .. } = &machine.boot {
        let kernel = kernel.display().to_string();
        // A test fills the process table, and WITNESS keeps a lock list for about 4,000 threads.
        let environment = "vfs.root.mountfrom=ufs:/dev/vtbd0 console=comconsole kern.maxproc=1000";
        add(&["-kernel", &kernel, "-append", format!("{environment} {kenv}").trim_end()]);
    }
    args
}

/// The value of QEMU's -plugin: a plugin, and the file it is to write.
pub fn plugin(plugin: &Path, out: &Path) -> String {
    let name = |path: &Path| path.display().to_string().replace(',', ",,");
    format!("file={},out={}", name(plugin), name(out))
}

/// bhyve's arguments, and the name of its machine for `bhyvectl --destroy --vm=`. The disk must be
/// a copy: bhyve has no overlay.
///
/// # Errors
/// A machine that it cannot boot.
pub fn bhyve(
    machine: &Machine,
    disk_copy: &Path,
    disks: &Disks,
    size: Size,
    process: u32,
) -> Result<(Vec<String>, String), String> {
    let Boot::Disk { format: "raw", .. } = machine.boot else {
        return Err(
            "bhyve boots disk.img only: convert it, qemu-img convert -O raw disk.qcow2 disk.img"
                .into(),
        );
    };
    let name = format!("aio_rs_{process}");
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-A", "-H", "-P", "-c", &size.smp.to_string(), "-m", &format!("{}M", size.mem)]);
    add(&["-l", "com1,stdio", "-l", "bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd"]);
    add(&["-s", "0,hostbridge", "-s", "31,lpc"]);
    for (slot, path, more) in [
        (2, disk_copy, ""),
        (3, &disks.files, ",ro"),
        (4, &disks.report, ",direct"),
        (5, &disks.scratch, ""),
        (6, &disks.raw, ""),
    ] {
        add(&["-s", &format!("{slot},virtio-blk,{}{more}", path.display())]);
    }
    add(&["-s", "7,virtio-rnd", &name]);
    Ok((args, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks() -> Disks {
        Disks {
            files: "/o/files".into(),
            report: "/o/report".into(),
            scratch: "/o/scratch".into(),
            raw: "/o/raw".into(),
        }
    }

    const SIZE: Size = Size { smp: 2, mem: 1024, icount: None };

    #[test]
    fn qemu_boots_a_kernel_without_writing_the_root() {
        let boot = Boot::Direct { kernel: "/v/kernel".into(), root: "/v/a,b.img".into() };
        let line = qemu(&Machine { name: "plain", boot }, &disks(), SIZE, false, "").join(" ");
        assert!(line.contains("file=/v/a,,b.img,format=raw,if=virtio,snapshot=on"));
        assert!(line.contains("-kernel /v/kernel -append"));
        assert!(line.contains("tcg,thread=multi"));
        let order: Vec<_> = ["a,,b.img", "/o/files", "/o/report", "/o/scratch", "/o/raw"]
            .iter()
            .map(|name| line.find(name).unwrap())
            .collect();
        assert!(order.is_sorted());
    }

    #[test]
    fn qemu_boots_a_disk() {
        let boot = Boot::Disk { image: "/v/disk.qcow2".into(), format: "qcow2" };
        let line = qemu(&Machine { name: "image", boot }, &disks(), SIZE, true, "").join(" ");
        assert!(line.contains("format=qcow2,if=virtio,snapshot=on"));
        assert!(line.contains("-accel kvm -cpu host"));
        assert!(!line.contains("-kernel"));
        // The guest's names for them, vtbd0 to vtbd4, come of this order.
        let order: Vec<_> = ["/v/disk.qcow2", "/o/files", "/o/report", "/o/scratch", "/o/raw"]
            .iter()
            .map(|name| line.find(name).unwrap())
            .collect();
        assert!(order.is_sorted());
        assert!(line.contains("file=/o/files,format=raw,if=virtio,readonly=on"));
    }

    #[test]
    fn qemu_counts_instructions() {
        let boot = Boot::Direct { kernel: "/v/kernel".into(), root: "/v/root.img".into() };
        let size = Size { smp: 1, icount: Some(0), ..SIZE };
        let line = qemu(&Machine { name: "plain", boot }, &disks(), size, false, "").join(" ");
        assert!(line.contains("-smp 1 -accel tcg,thread=single"), "{line}");
        assert!(line.contains("-icount shift=0,sleep=off"), "{line}");
    }

    #[test]
    fn bhyve_line() {
        let boot = Boot::Disk { image: "/v/disk.img".into(), format: "raw" };
        let machine = Machine { name: "image", boot };
        let (args, name) = bhyve(&machine, Path::new("/o/copy"), &disks(), SIZE, 7).unwrap();
        let line = args.join(" ");
        assert_eq!(name, "aio_rs_7");
        assert!(line.contains("-c 2 -m 1024M"));
        assert!(line.contains("-s 2,virtio-blk,/o/copy -s 3,virtio-blk,/o/files,ro"));
        assert!(line.ends_with(" aio_rs_7"));
    }

    #[test]
    fn bhyve_takes_no_kernel() {
        let boot = Boot::Direct { kernel: "/v/kernel".into(), root: "/v/root.img".into() };
        let machine = Machine { name: "plain", boot };
        let error = bhyve(&machine, Path::new("/o/copy"), &disks(), SIZE, 7).unwrap_err();
        assert!(error.contains("disk.img"));
    }
}
