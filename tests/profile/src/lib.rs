// SPDX-License-Identifier: BSD-2-Clause
//! A plugin for QEMU's emulation (plugin interface version 1) that counts executed instructions by
//! the place where their translated block begins, between the marks that the guest's bench program
//! executes: instructions that do nothing and that no compiler chooses (tests/guest, tick.rs).
//!
//! `-plugin file=libaio_rs_profile.so,out=FILE`. The file gets, for each row that was marked, a line
//! `row` and then lines `ADDRESS COUNT`, the address in hexadecimal, and `KIND COUNT` for what is
//! counted over all of them: see `kinds.rs`.
//!
//! For one virtual processor in one thread. A block counts as a whole when it is entered, also when
//! an exception ends it early.

mod kinds;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;

use kinds::{KINDS, kinds};

/// The interface version that this is written for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 1;

/// QEMU's `qemu_plugin_id_t`.
type Id = u64;
/// A block of guest code that is being translated; QEMU's, while it calls us.
enum Tb {}
/// An instruction in it.
enum Insn {}

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, f: extern "C" fn(Id, *mut Tb));
    fn qemu_plugin_register_atexit_cb(id: Id, f: extern "C" fn(Id, *mut c_void), data: *mut c_void);
    fn qemu_plugin_register_vcpu_tb_exec_inline(tb: *mut Tb, op: c_uint, at: *mut c_void, add: u64);
    fn qemu_plugin_register_vcpu_insn_exec_inline(
        insn: *mut Insn,
        op: c_uint,
        at: *mut c_void,
        add: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        f: extern "C" fn(c_uint, *mut c_void),
        flags: c_uint,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_data(insn: *const Insn) -> *const c_void;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
}

/// QEMU_PLUGIN_INLINE_ADD_U64.
const INLINE_ADD: c_uint = 0;
/// QEMU_PLUGIN_CB_NO_REGS.
const NO_REGS: c_uint = 0;
/// The most places: those after it share one counter.
const PLACES: usize = 1 << 20;
/// A mark but for its byte that says which: `nop` with a displacement.
const MARK: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, 0, 0xa1, 0x0b, 0x10];

/// Counters that translated code adds to, so they never move.
struct Counters(*mut u64);

// SAFETY: the memory is leaked, and only the virtual processor's thread adds to it and calls us.
unsafe impl Send for Counters {}

struct State {
    counters: Counters,
    /// The counter of an address.
    places: HashMap<u64, usize>,
    addresses: Vec<u64>,
    /// What a row came to so far, by counter.
    row: Vec<u64>,
    rows: usize,
    out: BufWriter<File>,
}

impl State {
    fn place(&mut self, address: u64) -> *mut u64 {
        let next = self.addresses.len();
        let index = *self.places.entry(address).or_insert(next.min(PLACES - 1));
        if index == next {
            self.addresses.push(address);
            self.row.push(0);
        }
        // SAFETY: below PLACES, which is how many there are.
        unsafe { self.counters.0.add(index) }
    }

    fn counters(&mut self) -> &mut [u64] {
        // SAFETY: as many as there are addresses, all inside; translated code adds to them only
        // while we do not run.
        unsafe { std::slice::from_raw_parts_mut(self.counters.0, self.addresses.len()) }
    }

    fn on(&mut self) {
        self.counters().fill(0);
    }

    fn off(&mut self) {
        let mut row = std::mem::take(&mut self.row);
        for (sum, count) in row.iter_mut().zip(self.counters()) {
            *sum += *count;
        }
        self.row = row;
    }

    /// Writes what the row before came to.
    fn end_row(&mut self) {
        if self.rows > 0 {
            let _ = writeln!(self.out, "row");
            for (address, count) in self.addresses.iter().zip(&self.row) {
                let kind = KINDS.iter().find(|(number, _)| number == address);
                let _ = match kind {
                    Some((_, name)) => writeln!(self.out, "{name} {count}"),
                    None if *count > 0 => writeln!(self.out, "{address:x} {count}"),
                    None => Ok(()),
                };
            }
            let _ = self.out.flush();
        }
        self.row.fill(0);
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn with(f: impl FnOnce(&mut State)) {
    if let Ok(mut state) = STATE.lock()
        && let Some(state) = state.as_mut()
    {
        f(state);
    }
}

extern "C" fn translated(_id: Id, tb: *mut Tb) {
    // SAFETY: QEMU's block, for as long as this call; indexes are below its count; each
    // instruction's bytes are as many as it says.
    unsafe {
        let count = qemu_plugin_tb_n_insns(tb);
        let address = qemu_plugin_tb_vaddr(tb);
        with(|state| {
            let counter = state.place(address);
            qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD, counter.cast(), count as u64);
        });
        for index in 0..count {
            let insn = qemu_plugin_tb_get_insn(tb, index);
            let size = qemu_plugin_insn_size(insn);
            let bytes = std::slice::from_raw_parts(qemu_plugin_insn_data(insn).cast::<u8>(), size);
            for (kind, much) in kinds(bytes) {
                with(|state| {
                    let at = state.place(kind).cast();
                    qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD, at, much);
                });
            }
            if qemu_plugin_insn_size(insn) != MARK.len() {
                continue;
            }
            let bytes: [u8; 8] = qemu_plugin_insn_data(insn).cast::<[u8; 8]>().read_unaligned();
            let which = bytes[4];
            if (1..=3).contains(&which) && bytes == [&MARK[..4], &[which], &MARK[5..]].concat()[..]
            {
                let data = usize::from(which) as *mut c_void;
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGS, data);
            }
        }
    }
}

extern "C" fn marked(_processor: c_uint, which: *mut c_void) {
    with(|state| match which as usize {
        1 => {
            state.end_row();
            state.rows += 1;
        }
        2 => state.on(),
        _ => state.off(),
    });
}

extern "C" fn at_exit(_id: Id, _data: *mut c_void) {
    with(State::end_row);
}

/// QEMU calls it when it has loaded the plugin.
///
/// # Safety
/// `argv` holds `argc` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let mut out = None;
    for index in 0..argc.max(0) as usize {
        // SAFETY: the caller says so.
        let word = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        out = word.strip_prefix("out=").map(str::to_owned).or(out);
    }
    let Some(out) = out else {
        eprintln!("aio_rs_profile: no out=FILE");
        return 1;
    };
    let file = match File::create(&out) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("aio_rs_profile: cannot write {out}: {error}");
            return 1;
        }
    };
    let counters = Counters(Box::leak(vec![0u64; PLACES].into_boxed_slice()).as_mut_ptr());
    if let Ok(mut state) = STATE.lock() {
        *state = Some(State {
            counters,
            places: HashMap::new(),
            addresses: Vec::new(),
            row: Vec::new(),
            rows: 0,
            out: BufWriter::new(file),
        });
    }
    // SAFETY: functions of ours, which stay.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, at_exit, std::ptr::null_mut());
    }
    0
}
