// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(9): the kernel's own variables, found by name and shared; and our own leaves.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicI32, Ordering};

use sys_bindings as sys;

use super::counter::Counter;
use super::proc::Curthread;
use crate::model::Errno;

/// An integer variable of the kernel, shared with whoever else reads or writes it.
#[derive(Clone, Copy)]
pub struct IntVar(&'static AtomicI32);

/// Finds the OID of a static leaf or node. May sleep.
fn find(td: *mut sys::thread, name: &CStr) -> Result<*mut sys::sysctl_oid, Errno> {
    /// sysctl(3)'s own request for the number of a name.
    const NAME2OID: [c_int; 2] = [0, 3];
    let mut request = NAME2OID;
    let mut mib = [0 as c_int; sys::CTL_MAXNAME as usize];
    let mut room = size_of_val(&mib);
    let mut bytes = 0;
    // SAFETY: both buffers are in kernel memory and of the given sizes.
    let code = unsafe {
        sys::kernel_sysctl(
            td,
            request.as_mut_ptr(),
            request.len() as u32,
            mib.as_mut_ptr().cast(),
            &mut room,
            name.as_ptr().cast_mut().cast(),
            name.count_bytes(),
            &mut bytes,
            0,
        )
    };
    Errno::check(code)?;
    let mut oid = core::ptr::null_mut();
    let mut index = 0;
    let levels = (bytes / size_of::<c_int>()) as u32;
    // SAFETY: the tree is locked; the result of a static OID stays valid without the lock.
    let code = unsafe {
        sys::sysctl_wlock();
        let code = sys::sysctl_find_oid(
            mib.as_mut_ptr(),
            levels,
            &mut oid,
            &mut index,
            core::ptr::null_mut(),
        );
        sys::sysctl_wunlock();
        code
    };
    Errno::check(code)?;
    Ok(oid)
}

impl IntVar {
    /// Finds the kernel's variable behind a static integer sysctl. May sleep.
    ///
    /// # Errors
    /// ENOENT: no such name. EINVAL: it is not a plain integer.
    pub fn find(td: super::proc::Curthread, name: &CStr) -> Result<IntVar, Errno> {
        let oid = find(td.as_ptr(), name)?;
        // SAFETY: a static OID of the kernel, never freed; oid_arg1 of SYSCTL_INT and SYSCTL_UINT
        // is the address of an int that lives as long.
        unsafe {
            let oid = &*oid;
            let kind = oid.oid_kind & sys::CTLTYPE;
            let plain = kind == sys::CTLTYPE_INT || kind == sys::CTLTYPE_UINT;
            if !plain || oid.oid_arg1.is_null() {
                return Err(Errno::EINVAL);
            }
            Ok(IntVar(AtomicI32::from_ptr(oid.oid_arg1.cast())))
        }
    }

    /// The value now.
    pub fn get(self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds 1 unless the value has reached `limit`.
    pub fn increment_below(self, limit: i32) -> bool {
        let next = |value| (value < limit).then_some(value + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next).is_ok()
    }

    /// Adds `count`.
    pub fn add(self, count: i32) {
        self.0.fetch_add(count, Ordering::AcqRel);
    }

    /// Takes `count` away.
    pub fn subtract(self, count: i32) {
        self.0.fetch_sub(count, Ordering::AcqRel);
    }

    pub(super) fn as_ptr(self) -> *mut i32 {
        self.0.as_ptr()
    }
}

/// Our own leaves, under one node; gone when this is dropped, which waits for readers.
pub struct Tree {
    context: Box<UnsafeCell<sys::sysctl_ctx_list>>,
    children: *mut sys::sysctl_oid_list,
    /// What the leaves show, kept until they are gone.
    counters: Vec<Arc<Counter>>,
    ints: Vec<Arc<AtomicI32>>,
    computed: Vec<Arc<Computed>>,
}

/// What a leaf shows that is worked out when it is read. May sleep.
pub enum Computed {
    Number(Box<dyn Fn() -> u64 + Send + Sync>),
    /// Several numbers in one leaf.
    Numbers(Box<dyn Fn() -> Vec<u64> + Send + Sync>),
    /// Lines, as the thread that asks may see them.
    Text(Box<dyn Fn(Curthread) -> String + Send + Sync>),
}

// SAFETY: a Tree is changed by `&mut self` only, and nothing reads its pointers by `&self`.
unsafe impl Send for Tree {}
// SAFETY: as above.
unsafe impl Sync for Tree {}

impl Tree {
    /// Adds node `name` below the existing node `parent`. May sleep.
    pub fn new(
        td: super::proc::Curthread,
        parent: &CStr,
        name: &'static CStr,
        description: &'static CStr,
    ) -> Result<Tree, Errno> {
        let parent = find(td.as_ptr(), parent)?;
        // SAFETY: a list head of two pointers, initialised next.
        let context = Box::new(UnsafeCell::new(unsafe { core::mem::zeroed() }));
        // SAFETY: the context does not move.
        unsafe { sys::sysctl_ctx_init(context.get()) };
        let mut tree = Tree {
            context,
            children: core::ptr::null_mut(),
            counters: Vec::new(),
            ints: Vec::new(),
            computed: Vec::new(),
        };
        // SAFETY: a node of the kernel's static tree.
        tree.children = unsafe { &raw mut (*parent).oid_children };
        let node = tree.add(
            name,
            sys::CTLTYPE_NODE | sys::CTLFLAG_RD,
            core::ptr::null_mut(),
            0,
            None,
            c"N",
            description,
        )?;
        // SAFETY: just made; the context owns it.
        tree.children = unsafe { &raw mut (*node).oid_children };
        Ok(tree)
    }

    /// Adds node `name`, and by `fill` what is below it.
    pub fn node(
        &mut self,
        name: &'static CStr,
        description: &'static CStr,
        fill: impl FnOnce(&mut Tree) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let kind = sys::CTLTYPE_NODE | sys::CTLFLAG_RD;
        let node = self.add(name, kind, core::ptr::null_mut(), 0, None, c"N", description)?;
        // SAFETY: just made; the context owns it.
        let below = unsafe { &raw mut (*node).oid_children };
        let here = core::mem::replace(&mut self.children, below);
        let filled = fill(self);
        self.children = here;
        filled
    }

    /// Adds a read-only leaf whose value is worked out when it is read.
    pub fn computed(
        &mut self,
        name: &'static CStr,
        value: Computed,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        let (kind, format) = match &value {
            Computed::Number(_) | Computed::Numbers(_) => (sys::CTLTYPE_U64, c"QU"),
            Computed::Text(_) => (sys::CTLTYPE_STRING, c"A"),
        };
        let value = Arc::new(value);
        let at = Arc::as_ptr(&value);
        self.computed.push(value);
        self.add_leaf(
            name,
            kind | sys::CTLFLAG_RD,
            at.cast_mut().cast(),
            Some(show),
            format,
            description,
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &self,
        name: &'static CStr,
        kind: u32,
        arg1: *mut c_void,
        arg2: i64,
        handler: Handler,
        format: &'static CStr,
        description: &'static CStr,
    ) -> Result<*mut sys::sysctl_oid, Errno> {
        // SAFETY: all strings are static; arg1 outlives the tree: the leaves' contracts.
        let oid = unsafe {
            sys::sysctl_add_oid(
                self.context.get(),
                self.children,
                sys::OID_AUTO,
                name.as_ptr(),
                (kind | sys::CTLFLAG_MPSAFE).cast_signed(),
                arg1,
                arg2,
                handler,
                format.as_ptr(),
                description.as_ptr(),
                core::ptr::null(),
            )
        };
        if oid.is_null() { Err(Errno::EEXIST) } else { Ok(oid) }
    }

    /// Adds a read-only string.
    pub fn string(
        &self,
        name: &'static CStr,
        value: &'static CStr,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        let kind = sys::CTLTYPE_STRING | sys::CTLFLAG_RD;
        let length = value.count_bytes() as i64 + 1;
        let value = value.as_ptr().cast_mut().cast();
        self.add(name, kind, value, length, Some(sys::sysctl_handle_string), c"A", description)?;
        Ok(())
    }

    /// Adds a read-only counter.
    pub fn counter(
        &mut self,
        name: &'static CStr,
        value: &Arc<Counter>,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        let kind = sys::CTLTYPE_U64 | sys::CTLFLAG_RD;
        self.counters.push(value.clone());
        let value = value.as_ptr().cast_mut().cast();
        let handler = Some(sys::sysctl_handle_counter_u64 as _);
        self.add_leaf(name, kind, value, handler, c"QU", description)
    }

    /// Adds a read-only integer.
    pub fn int(
        &mut self,
        name: &'static CStr,
        value: &Arc<AtomicI32>,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        let kind = sys::CTLTYPE_INT | sys::CTLFLAG_RD;
        self.ints.push(value.clone());
        let handler = Some(sys::sysctl_handle_int as _);
        self.add_leaf(name, kind, value.as_ptr().cast(), handler, c"I", description)
    }

    /// Adds an integer that the administrator, or loader.conf(5), may set.
    pub fn setting(
        &mut self,
        name: &'static CStr,
        value: &Arc<AtomicI32>,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        let kind = sys::CTLTYPE_INT | sys::CTLFLAG_RWTUN;
        self.ints.push(value.clone());
        let handler = Some(sys::sysctl_handle_int as _);
        self.add_leaf(name, kind, value.as_ptr().cast(), handler, c"I", description)
    }

    fn add_leaf(
        &self,
        name: &'static CStr,
        kind: u32,
        value: *mut c_void,
        handler: Handler,
        format: &'static CStr,
        description: &'static CStr,
    ) -> Result<(), Errno> {
        self.add(name, kind, value, 0, handler, format, description)?;
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // SAFETY: initialised by new. It waits for handlers that run and removes all leaves; what
        // they show is dropped after that, with the fields.
        let code = unsafe { sys::sysctl_ctx_free(self.context.get()) };
        // A leaf that stayed would lead to what is freed next.
        assert!(code == 0, "vfs.aio.rs is not empty (error {code}): another module added to it");
    }
}

type Handler = Option<
    unsafe extern "C" fn(
        *mut sys::sysctl_oid,
        *mut c_void,
        sys::intmax_t,
        *mut sys::sysctl_req,
    ) -> c_int,
>;

/// Shows a [`Computed`] leaf.
///
/// # Safety
/// As the kernel calls the handler of a leaf that [`Tree::computed`] made.
unsafe extern "C" fn show(
    _oid: *mut sys::sysctl_oid,
    leaf: *mut c_void,
    _number: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: the leaf's value, which outlives it; its removal waits for this call.
    let leaf: &Computed = unsafe { &*leaf.cast() };
    // SAFETY: the kernel's request of this call; oldfunc copies so many bytes out, and may sleep.
    let out = |bytes: *const c_void, len: usize| unsafe {
        match (*req).oldfunc {
            Some(copy) => copy(req, bytes, len),
            None => 0,
        }
    };
    match leaf {
        Computed::Number(value) => {
            let value = value();
            out((&raw const value).cast(), size_of::<u64>())
        }
        Computed::Numbers(values) => {
            let values = values();
            out(values.as_ptr().cast(), size_of_val(values.as_slice()))
        }
        Computed::Text(text) => {
            // SAFETY: the current thread, for this call.
            let td = unsafe { Curthread::current() };
            let mut text = text(td);
            text.push('\0');
            out(text.as_ptr().cast(), text.len())
        }
    }
}
