// SPDX-License-Identifier: BSD-2-Clause
//! The sysctl(9) tree: what the built-in AIO has there, and what modules add.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::errno::{EBUSY, EINVAL, ENOENT, ENOMEM, ENOTDIR, EPERM, Errno};
use crate::state::Held;
use crate::{imports, mem, module, report, sched, sys, vm};

struct Node {
    oid: *mut sys::sysctl_oid,
    /// Address of the parent's list of children; 0 for the root's.
    parent: usize,
    name: String,
    /// The contexts it belongs to, if it is dynamic.
    contexts: Vec<usize>,
}

struct Tree {
    nodes: Vec<Node>,
    next_number: c_int,
    /// Depth of sysctl_wlock.
    locked: u32,
    /// How many threads are in the handler of a node.
    running: BTreeMap<usize, u32>,
}

static TREE: Held<Tree> =
    Held::new(Tree { nodes: Vec::new(), next_number: 0x100, locked: 0, running: BTreeMap::new() });

/// Where a thread waits that removes a node: odd, as all channels of ours.
fn chan(oid: *mut sys::sysctl_oid) -> u64 {
    0x4c << 56 | (oid as u64) << 1 | 1
}

/// The integers of the built-in AIO, with its defaults.
const AIO: &[(&str, i32, bool)] = &[
    ("max_aio_procs", 32, true),
    ("num_aio_procs", 0, false),
    ("target_aio_procs", 4, true),
    ("max_aio_queue", 1024, true),
    ("num_queue_count", 0, false),
    ("num_buf_aio", 0, false),
    ("num_unmapped_aio", 0, false),
    ("aiod_lifetime", 30 * imports::HZ, true),
    ("max_aio_per_proc", 32, true),
    ("max_aio_queue_per_proc", 256, true),
    ("max_buf_aio", 16, true),
    ("enable_unsafe", 0, true),
    ("unsafe_warningcnt", 1, true),
];

const CTLFLAG_RD: u32 = 0x8000_0000;
const CTLFLAG_WR: u32 = 0x4000_0000;

/// Makes the kernel's part of the tree.
pub fn start() {
    let vfs = node_of_kernel(0, "vfs");
    let aio = node(vfs, "aio");
    for &(name, value, writable) in AIO {
        int(aio, name, value, writable);
    }
    let kern = node(0, "kern");
    let ipc = node(kern, "ipc");
    let ipc_aio = node(ipc, "aio");
    int(ipc_aio, "max_procs", 4, true);
    int(ipc_aio, "num_procs", 0, false);
    int(ipc_aio, "target_procs", 4, true);
    int(ipc_aio, "lifetime", 30 * imports::HZ, true);
    int(kern, "osreldate", sys::HOSTKERN_FREEBSD_VERSION as i32, false);
    let features = node_of_kernel(kern, "kern_features");
    int(features, "aio", 1, false);
    posix();
    let security = node(0, "security");
    let bsd = node(security, "bsd");
    int(bsd, "unprivileged_mlock", 1, true);
    int(kern, "maxphys", crate::disk::MAXPHYS as i32, false);
    int(vfs, "unmapped_buf_allowed", i32::from(imports::unmapped_allowed()), false);
    let vm = node(0, "vm");
    let stats = node(node(vm, "stats"), "vm");
    int(stats, WIRED, 0, false);
    int(kern, "maxproc", crate::proc::MAX_PROCS as i32, false);
}

/// The pages that users have locked, which are counted when somebody asks.
const WIRED: &str = "v_user_wire_count";

/// What sysconf(3) asks for.
fn posix() {
    let node_of = node_of_kernel(0, "p1003_1b");
    int(node_of, "asynchronous_io", 200_112, false);
    // The same variable as the limit of the queue.
    let limit = find_named("vfs.aio.max_aio_queue_per_proc").expect("made before");
    // SAFETY: our integers are never removed.
    let cell = unsafe { (*limit).oid_arg1 };
    let kind = sys::CTLTYPE_INT | CTLFLAG_RD;
    insert(
        mem::new_object(),
        0,
        node_of,
        "aio_listio_max",
        kind,
        cell,
        0,
        imports::sysctl_handle_int_handler(),
    );
    int(node_of, "aio_max", 1024, false);
    int(node_of, "aio_prio_delta_max", 0, false);
}

fn children(oid: *mut sys::sysctl_oid) -> usize {
    oid as usize + std::mem::offset_of!(sys::sysctl_oid, oid_children)
}

fn node(parent: usize, name: &str) -> usize {
    let kind = sys::CTLTYPE_NODE | CTLFLAG_RD;
    children(insert(mem::new_object(), 0, parent, name, kind, std::ptr::null_mut(), 0, None))
}

/// A node that modules may refer to as `sysctl___` and its name, which begins with its parent's.
fn node_of_kernel(parent: usize, symbol: &str) -> usize {
    let oid = module::kernel_object(&format!("sysctl___{symbol}")) as *mut sys::sysctl_oid;
    let name = if parent == 0 { symbol } else { symbol.rsplit('_').next().unwrap_or(symbol) };
    let kind = sys::CTLTYPE_NODE | CTLFLAG_RD;
    children(insert(oid, 0, parent, name, kind, std::ptr::null_mut(), 0, None))
}

fn int(parent: usize, name: &str, value: i32, writable: bool) {
    let cell: *mut i64 = mem::new_object();
    // SAFETY: just made, and never freed.
    unsafe { cell.cast::<i32>().write(value) };
    let kind = sys::CTLTYPE_INT | CTLFLAG_RD | if writable { CTLFLAG_WR } else { 0 };
    insert(
        mem::new_object(),
        0,
        parent,
        name,
        kind,
        cell.cast(),
        0,
        imports::sysctl_handle_int_handler(),
    );
}

pub type Handler = Option<
    unsafe extern "C" fn(
        *mut sys::sysctl_oid,
        *mut c_void,
        sys::intmax_t,
        *mut sys::sysctl_req,
    ) -> c_int,
>;

#[allow(clippy::too_many_arguments)]
fn insert(
    oid: *mut sys::sysctl_oid,
    context: usize,
    parent: usize,
    name: &str,
    kind: u32,
    arg1: *mut c_void,
    arg2: i64,
    handler: Handler,
) -> *mut sys::sysctl_oid {
    let c_name = CString::new(name).expect("a name").into_raw();
    TREE.with(|tree| {
        // SAFETY: just made; the name is freed with it.
        unsafe {
            (*oid).oid_number = tree.next_number;
            (*oid).oid_kind = kind;
            (*oid).oid_arg1 = arg1;
            (*oid).oid_arg2 = arg2;
            (*oid).oid_handler = handler;
            (*oid).oid_name = c_name;
            (*oid).oid_parent = parent as *mut _;
        }
        tree.next_number += 1;
        tree.nodes.push(Node { oid, parent, name: name.to_owned(), contexts: vec![context] });
    });
    oid
}

/// A static sysctl of the kernel's own AIO: it takes the place of ours, with all below.
pub fn register(oid: *mut sys::sysctl_oid) {
    // SAFETY: a struct sysctl_oid of the object, which stays; its name is a C string.
    let (parent, name) = unsafe {
        ((*oid).oid_parent as usize, CStr::from_ptr((*oid).oid_name).to_string_lossy().into_owned())
    };
    TREE.with(|tree| {
        let ours = tree.nodes.iter().position(|node| node.parent == parent && node.name == name);
        if let Some(index) = ours {
            let below = children(tree.nodes.remove(index).oid);
            tree.nodes.retain(|node| node.parent != below);
        }
        // SAFETY: as above.
        unsafe {
            if (*oid).oid_number < 0 {
                (*oid).oid_number = tree.next_number;
                tree.next_number += 1;
            }
        }
        tree.nodes.push(Node { oid, parent, name, contexts: vec![0] });
    });
}

/// sysctl_add_oid(9). Null when the name exists; a node that does is shared.
#[allow(clippy::too_many_arguments)]
pub fn add(
    context: *mut sys::sysctl_ctx_list,
    parent: *mut sys::sysctl_oid_list,
    name: *const c_char,
    kind: c_int,
    arg1: *mut c_void,
    arg2: i64,
    handler: Handler,
) -> *mut sys::sysctl_oid {
    // SAFETY: the caller's C string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let exists = TREE.with(|tree| {
        if parent as usize != 0
            && !tree.nodes.iter().any(|node| children(node.oid) == parent as usize)
        {
            report::panic(&format!("sysctl {name} is added below a node that is not there"));
        }
        let same = |node: &&mut Node| node.parent == parent as usize && node.name == name;
        tree.nodes.iter_mut().find(same).map(|node| {
            // SAFETY: nodes of the tree live while they are in it.
            let its = unsafe { (*node.oid).oid_kind } & sys::CTLTYPE;
            if its != sys::CTLTYPE_NODE || kind as u32 & sys::CTLTYPE != its {
                return std::ptr::null_mut();
            }
            node.contexts.push(context as usize);
            node.oid
        })
    });
    if let Some(oid) = exists {
        return oid;
    }
    insert(
        mem::new_object(),
        context as usize,
        parent as usize,
        &name,
        kind as u32,
        arg1,
        arg2,
        handler,
    )
}

/// sysctl_ctx_free(9): nodes go one by one, the last that was added first, and each waits for the
/// threads in its handler. Meanwhile others may still come to those that are left.
pub fn free_context(context: *mut sys::sysctl_ctx_list) -> c_int {
    let context = context as usize;
    let busy = TREE.with(|tree| {
        let goes = |node: &Node| node.contexts == [context];
        tree.nodes.iter().filter(|node| goes(node)).any(|node| {
            tree.nodes.iter().any(|child| child.parent == children(node.oid) && !goes(child))
        })
    });
    if busy {
        return EBUSY.0;
    }
    let next = || {
        TREE.with(|tree| {
            let last = tree.nodes.iter().rposition(|node| node.contexts == [context])?;
            Some(tree.nodes.remove(last))
        })
    };
    while let Some(node) = next() {
        while TREE.with(|tree| tree.running.contains_key(&(node.oid as usize))) {
            sched::sleep(chan(node.oid), false, "oidrm", None, || ());
        }
        // SAFETY: made by insert with a name of its own.
        unsafe { drop(CString::from_raw((*node.oid).oid_name.cast_mut())) };
        mem::free_object(node.oid);
    }
    TREE.with(|tree| {
        tree.nodes.iter_mut().for_each(|node| node.contexts.retain(|&its| its != context))
    });
    0
}

/// Checks that no node leads into memory that is about to go.
pub fn assert_none_in(gone: std::ops::Range<usize>) {
    let found = TREE.with(|tree| {
        let leads = |node: &&Node| {
            // SAFETY: nodes of the tree live while they are in it.
            let (handler, value) = unsafe { ((*node.oid).oid_handler, (*node.oid).oid_arg1) };
            handler.is_some_and(|handler| gone.contains(&(handler as usize)))
                || gone.contains(&(value as usize))
        };
        tree.nodes.iter().find(leads).map(|node| node.name.clone())
    });
    if let Some(name) = found {
        report::panic(&format!("sysctl {name} leads into a module that is unloaded"));
    }
}

pub fn lock() {
    TREE.with(|tree| tree.locked += 1);
}

pub fn unlock() {
    TREE.with(|tree| {
        if tree.locked == 0 {
            report::panic("sysctl_wunlock without sysctl_wlock");
        }
        tree.locked -= 1;
    });
}

fn find_named(name: &str) -> Option<*mut sys::sysctl_oid> {
    TREE.with(|tree| {
        let mut parent = 0;
        let mut found = None;
        for part in name.split('.') {
            let node = tree.nodes.iter().find(|node| node.parent == parent && node.name == part)?;
            found = Some(node.oid);
            parent = children(node.oid);
        }
        found
    })
}

/// The numbers of a name: what sysctl {0, 3} answers.
pub fn numbers(name: &str) -> Result<Vec<c_int>, Errno> {
    let mut oid = find_named(name).ok_or(ENOENT)?;
    let parents: BTreeMap<usize, *mut sys::sysctl_oid> =
        TREE.with(|tree| tree.nodes.iter().map(|node| (children(node.oid), node.oid)).collect());
    let mut numbers = Vec::new();
    loop {
        // SAFETY: nodes of the tree live while they are in it.
        let (number, parent) = unsafe { ((*oid).oid_number, (*oid).oid_parent as usize) };
        numbers.push(number);
        match parents.get(&parent) {
            Some(&parent) => oid = parent,
            None => break,
        }
    }
    numbers.reverse();
    Ok(numbers)
}

/// sysctl_find_oid: needs the tree locked.
pub fn find(numbers: &[c_int]) -> Result<*mut sys::sysctl_oid, Errno> {
    TREE.with(|tree| {
        if tree.locked == 0 {
            report::panic("sysctl_find_oid without sysctl_wlock");
        }
        let mut parent = 0;
        let mut found: Result<*mut sys::sysctl_oid, Errno> = Err(ENOENT);
        for &number in numbers {
            // SAFETY: nodes of the tree live while they are in it.
            let is =
                |node: &&Node| node.parent == parent && unsafe { (*node.oid).oid_number } == number;
            // SAFETY: as above.
            if found.is_ok_and(|oid| unsafe { (*oid).oid_kind } & sys::CTLTYPE != sys::CTLTYPE_NODE)
            {
                return Err(ENOTDIR);
            }
            let node = tree.nodes.iter().find(is).ok_or(ENOENT)?;
            found = Ok(node.oid);
            parent = children(node.oid);
        }
        found
    })
}

unsafe extern "C" fn old(req: *mut sys::sysctl_req, from: *const c_void, len: usize) -> c_int {
    // It is the user's memory, which is not wired.
    sched::may_sleep("SYSCTL_OUT(9)");
    sched::point();
    // SAFETY: the request is made by `access`, whose buffer has oldlen bytes.
    unsafe {
        let req = &mut *req;
        if !req.oldptr.is_null() {
            let room = req.oldlen.saturating_sub(req.oldidx);
            let count = len.min(room);
            std::ptr::copy_nonoverlapping(
                from.cast::<u8>(),
                req.oldptr.cast::<u8>().add(req.oldidx),
                count,
            );
            if count < len {
                req.oldidx += len;
                return ENOMEM.0;
            }
        }
        req.oldidx += len;
    }
    0
}

unsafe extern "C" fn new(req: *mut sys::sysctl_req, to: *mut c_void, len: usize) -> c_int {
    // SAFETY: as in old.
    unsafe {
        let req = &mut *req;
        if req.newptr.is_null() {
            return 0;
        }
        if req.newlen - req.newidx < len {
            return EINVAL.0;
        }
        std::ptr::copy_nonoverlapping(
            req.newptr.cast::<u8>().add(req.newidx),
            to.cast::<u8>(),
            len,
        );
        req.newidx += len;
    }
    0
}

/// Reads, and with `value` sets, a leaf by name: sysctlbyname(3). Returns what was read.
pub fn access(name: &str, room: usize, value: Option<&[u8]>, root: bool) -> Result<Vec<u8>, Errno> {
    let oid = find_named(name).ok_or(ENOENT)?;
    if name.ends_with(WIRED) {
        set(name, vm::wired() as i32);
    }
    // SAFETY: nodes of the tree live while they are in it.
    let (kind, handler, arg1, arg2) =
        unsafe { ((*oid).oid_kind, (*oid).oid_handler, (*oid).oid_arg1, (*oid).oid_arg2) };
    let Some(handler) = handler else { return Err(crate::errno::EISDIR) };
    if value.is_some() && (kind & CTLFLAG_WR == 0 || !root) {
        return Err(EPERM);
    }
    let mut buffer = vec![0u8; room];
    // SAFETY: numbers and pointers.
    let mut req: sys::sysctl_req = unsafe { std::mem::zeroed() };
    req.td = sched::curthread();
    // Without a buffer only the length is told.
    req.oldptr = if room == 0 { std::ptr::null_mut() } else { buffer.as_mut_ptr().cast() };
    req.oldlen = room;
    req.validlen = room;
    req.oldfunc = Some(old);
    req.newfunc = Some(new);
    if let Some(value) = value {
        req.newptr = value.as_ptr().cast();
        req.newlen = value.len();
    }
    // A leaf's handler gets itself, or for CTLTYPE_NODE handlers the rest of the name, which none has.
    TREE.with(|tree| *tree.running.entry(oid as usize).or_insert(0) += 1);
    // SAFETY: the leaf's own handler and arguments; its removal waits for us.
    let code = unsafe { sched::in_module(|| handler(oid, arg1, arg2, &mut req)) };
    let last = TREE.with(|tree| {
        let running = tree.running.get_mut(&(oid as usize)).expect("counted above");
        *running -= 1;
        let last = *running == 0;
        if last {
            tree.running.remove(&(oid as usize));
        }
        last
    });
    if last {
        sched::wakeup(chan(oid), false);
    }
    sched::assert_no_locks("a sysctl's handler");
    if code != 0 && !(code == ENOMEM.0 && room == 0) {
        return Err(Errno(code));
    }
    buffer.truncate(req.oldidx);
    Ok(buffer)
}

/// SYSCTL_OUT, for the handlers. Nothing is told from null, but how much it would be.
///
/// # Safety
/// `from` has `len` bytes, or is null; `req` is the request a handler was called with.
pub unsafe fn tell(req: *mut sys::sysctl_req, from: *const c_void, len: usize) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { (*req).oldfunc.map_or(0, |function| function(req, from, len)) }
}

/// SYSCTL_IN, for the handlers.
///
/// # Safety
/// As [`tell`]; `to` has `len` bytes.
pub unsafe fn ask(req: *mut sys::sysctl_req, to: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { (*req).newfunc.map_or(0, |function| function(req, to, len)) }
}

/// sysctl_handle_string. Who may write to it is not for the handler to say.
///
/// # Safety
/// The handler's arguments.
pub unsafe fn string(
    oid: *mut sys::sysctl_oid,
    text: *mut u8,
    room: i64,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: the caller's contract: a C string, in as much room as its leaf says.
    unsafe {
        let len = CStr::from_ptr(text.cast()).count_bytes() + 1;
        let fixed = (*oid).oid_kind & CTLFLAG_WR == 0 || room == 0;
        let room = if fixed { len } else { room as usize };
        let from = if (*req).oldptr.is_null() { std::ptr::null() } else { text.cast() };
        let code = tell(req, from, len);
        if code != 0 || (*req).newptr.is_null() {
            return code;
        }
        let count = (*req).newlen - (*req).newidx;
        if count >= room {
            return EINVAL.0;
        }
        let code = if count == 0 { 0 } else { ask(req, text.cast(), count) };
        if code == 0 {
            text.add(count).write(0);
        }
        code
    }
}

/// Sets one of the kernel's integers.
pub fn set(name: &str, value: i32) {
    let oid = find_named(name).expect("one of ours");
    // SAFETY: our integers are never removed.
    unsafe { *(*oid).oid_arg1.cast::<i32>() = value }
}

/// The value of one of the kernel's integers.
pub fn value(name: &str) -> i32 {
    let oid = find_named(name).expect("one of ours");
    // SAFETY: our integers are never removed.
    unsafe { *(*oid).oid_arg1.cast::<i32>() }
}
