// SPDX-License-Identifier: BSD-2-Clause
//! EVFILT_AIO and EVFILT_LIO: the functions of our knotes, and the exchange of the filters.
//!
//! # Exchange
//! Where the built-in's tables can be written, as on FreeBSD 14, our attach takes the place of
//! theirs in the table that is registered already, by one store; each knote then gets the functions
//! of its own engine. Nothing is ever without a filter, and no knote stands in the way. f_touch,
//! which the built-in lacks and kqueue reads twice, is put there once and stays.
//!
//! Where the tables are constant the kernel's own functions must do it:
//! kqueue_del_filteropts(9), which fails while a knote of the filter exists anywhere, and
//! kqueue_add_filteropts(9). Between the two there is no filter, and the kernel forgets whoever
//! asks for it then, which its INVARIANTS notice: load and unload there with AIO events at rest.
//!
//! # Context
//! f_event and f_touch run under the knote list's lock, which is the lock of the note, and f_event
//! also under the kqueue's; neither sleeps. f_attach and f_detach run without a lock.

use core::ffi::{c_int, c_long, c_ulong, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};

use sys_bindings as sys;
use sys_bindings::gate::{NOTE_ATTACHED, NOTE_BUSY, NOTE_FOREIGN, NOTE_JOINED, NOTE_MARK, Note};

/// Which of the two filters.
#[derive(Clone, Copy)]
enum Kind {
    Aio = 0,
    Lio = 1,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Aio, Kind::Lio];

    fn number(self) -> c_int {
        match self {
            Kind::Aio => sys::EVFILT_AIO,
            Kind::Lio => sys::EVFILT_LIO,
        }
    }

    fn ours(self) -> *const sys::filterops {
        match self {
            Kind::Aio => &raw const AIO.0,
            Kind::Lio => &raw const LIO.0,
        }
    }

    fn builtin(self) -> *mut sys::filterops {
        BUILTIN[self as usize].load(SeqCst)
    }

    /// The built-in's own attach, as it was found.
    fn original(self) -> Attach {
        // SAFETY: null, or the function that was read from the built-in's table.
        unsafe { core::mem::transmute::<*mut c_void, Attach>(ORIGINAL[self as usize].load(SeqCst)) }
    }

    /// The word of the built-in's table that holds its attach. Only where tables can be written.
    fn attach_word(self) -> &'static AtomicPtr<c_void> {
        // SAFETY: the table was found, lives as long as the kernel, and is read by it with single
        // loads; an optional function pointer is a pointer.
        unsafe { AtomicPtr::from_ptr((&raw mut (*self.builtin()).f_attach).cast()) }
    }

    fn our_attach(self) -> *mut c_void {
        match self {
            Kind::Aio => attach_aio as *mut c_void,
            Kind::Lio => attach_lio as *mut c_void,
        }
    }

    /// Whether the built-in's table can be written.
    fn is_writable(self) -> bool {
        self.builtin().addr() >= (&raw const brwsection).addr()
    }

    fn is_ours(self) -> bool {
        OURS[self as usize].load(SeqCst)
    }
}

unsafe extern "C" {
    /// Where the kernel's writable memory begins; what is constant lies below.
    static brwsection: [u8; 0];
}

type Attach = Option<unsafe extern "C" fn(*mut sys::knote) -> c_int>;

/// Which filters are ours now.
static OURS: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// The attach of each of the built-in's tables.
static ORIGINAL: [AtomicPtr<c_void>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

/// The built-in's filters, found once.
static BUILTIN: [AtomicPtr<sys::filterops>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

#[repr(transparent)]
struct Filter(sys::filterops);

// SAFETY: function pointers to resident text.
unsafe impl Sync for Filter {}

/// See [`sys::gate::aio_rs_gate_pipe_filter`]. The engine puts the knotes on their list itself, and
/// no kqueue has them.
#[unsafe(no_mangle)]
static aio_rs_gate_pipe_filter: Filter =
    Filter(sys::filterops { f_event: Some(super::event_pipe), ..EMPTY });

/// A filter without functions.
// SAFETY: flags and nullable function pointers; zero is a value of each.
const EMPTY: sys::filterops = unsafe { MaybeUninit::zeroed().assume_init() };

static AIO: Filter = Filter(sys::filterops {
    f_attach: Some(attach_aio),
    f_detach: Some(detach),
    f_event: Some(event_aio),
    f_touch: Some(touch),
    ..EMPTY
});

static LIO: Filter = Filter(sys::filterops {
    f_attach: Some(attach_lio),
    f_detach: Some(detach),
    f_event: Some(event_lio),
    f_touch: Some(touch),
    ..EMPTY
});

unsafe extern "C" fn attach_aio(kn: *mut sys::knote) -> c_int {
    // SAFETY: as the kernel calls us.
    unsafe { attach(kn, Kind::Aio) }
}

unsafe extern "C" fn attach_lio(kn: *mut sys::knote) -> c_int {
    // SAFETY: as the kernel calls us.
    unsafe { attach(kn, Kind::Lio) }
}

/// # Safety
/// `kn` is new, in flux, and this thread's.
unsafe fn attach(kn: *mut sys::knote, kind: Kind) -> c_int {
    // SAFETY: the caller's promise. EV_FLAG1 comes from the kernel alone; then kn_sdata is a note
    // if the mark says so, which the engine keeps until the knote is gone, and else the built-in's.
    unsafe {
        if u32::from((*kn).kn_kevent.flags) & sys::EV_FLAG1 == 0 {
            return sys::EPERM as c_int;
        }
        if (*kn).kn_sfflags.cast_unsigned() != NOTE_MARK {
            (*kn).kn_fop = kind.builtin();
            return match kind.original() {
                Some(attach) => attach(kn),
                None => sys::ENXIO as c_int,
            };
        }
        (*kn).kn_fop = kind.ours();
        let note: *mut Note = ptr::with_exposed_provenance_mut((*kn).kn_sdata as usize);
        (*kn).kn_ptr.p_v = note.cast();
        (*kn).kn_kevent.flags &= !(sys::EV_FLAG1 as u16);
        // The registering thread is this one.
        (*note).state = NOTE_ATTACHED;
        sys::knlist_add(&raw mut (*note).list, kn, 0);
    }
    0
}

unsafe extern "C" fn detach(kn: *mut sys::knote) {
    // SAFETY: the note lives until its list is empty.
    unsafe {
        let note: *mut Note = (*kn).kn_ptr.p_v.cast();
        let list = &raw mut (*note).list;
        let argument = (*list).kl_lockarg;
        if let (Some(lock), Some(unlock)) = ((*list).kl_lock, (*list).kl_unlock) {
            lock(argument);
            if !(*list).kl_list.slh_first.is_null() {
                sys::knlist_remove(list, kn, 1);
            }
            unlock(argument);
        }
    }
}

unsafe extern "C" fn event_aio(kn: *mut sys::knote, _hint: c_long) -> c_int {
    // SAFETY: under the note's lock. A knote that is off its list has been cleared, not to be lost
    // with its note: what it tells is in it.
    unsafe {
        if (*kn).kn_knlist.is_null() {
            return 1;
        }
        let note: *mut Note = (*kn).kn_ptr.p_v.cast();
        (*kn).kn_kevent.data = i64::from((*note).error);
        if (*note).finished == 0 {
            return 0;
        }
        (*kn).kn_kevent.flags |= sys::EV_EOF as u16;
    }
    1
}

unsafe extern "C" fn event_lio(kn: *mut sys::knote, _hint: c_long) -> c_int {
    // SAFETY: as in event_aio.
    unsafe {
        if (*kn).kn_knlist.is_null() {
            return 1;
        }
        let note: *mut Note = (*kn).kn_ptr.p_v.cast();
        c_int::from((*note).finished > 0)
    }
}

/// A kevent for an address that has a knote already, or an event on its way to the user.
unsafe extern "C" fn touch(kn: *mut sys::knote, kev: *mut sys::kevent, what: c_ulong) {
    // SAFETY: the kernel's knote and kevent, in flux. A knote that is on a list is under its lock.
    unsafe {
        if what == c_ulong::from(sys::EVENT_PROCESS) {
            *kev = (*kn).kn_kevent;
            if u32::from((*kn).kn_kevent.flags) & sys::EV_CLEAR != 0 {
                (*kn).kn_kevent.data = 0;
                (*kn).kn_kevent.fflags = 0;
            }
            return;
        }
        let is_ours = (*kn).kn_fop == Kind::Aio.ours() || (*kn).kn_fop == Kind::Lio.ours();
        // Registration. Without EV_FLAG1 it is the user's own, who may change flags and udata only.
        if u32::from((*kev).flags) & sys::EV_FLAG1 == 0 || (*kev).fflags != NOTE_MARK {
            if !is_ours {
                // What the kernel does for a filter without f_touch.
                (*kn).kn_sfflags = (*kev).fflags.cast_signed();
                (*kn).kn_sdata = (*kev).data;
            }
            return;
        }
        let new: *mut Note = ptr::with_exposed_provenance_mut((*kev).data as usize);
        if !is_ours {
            (*new).state = NOTE_FOREIGN;
            return;
        }
        if (*kn).kn_knlist.is_null() {
            // It was left behind with an event nobody has fetched yet; now it is ours again, and
            // that event is one with ours.
            (*kn).kn_ptr.p_v = new.cast();
            (*kn).kn_kevent.flags &= !((sys::EV_EOF | sys::EV_ONESHOT) as u16);
            (*new).state = NOTE_ATTACHED;
            sys::knlist_add(&raw mut (*new).list, kn, 0);
            return;
        }
        let old: *mut Note = (*kn).kn_ptr.p_v.cast();
        if (*old).list.kl_lockarg != (*new).list.kl_lockarg {
            (*new).state = NOTE_FOREIGN;
        } else if (*old).holders == 0 {
            (*new).state = NOTE_BUSY;
        } else {
            (*old).holders += 1;
            (*new).joined = old;
            (*new).state = NOTE_JOINED;
        }
    }
}

/// An object that looks to the built-in's attach like what it expects: a request or a list.
#[repr(C, align(16))]
struct Scratch(core::cell::UnsafeCell<[u8; 1024]>);

// SAFETY: only used under the gate's switch.
unsafe impl Sync for Scratch {}

const _: () = assert!(size_of::<sys::kaiocb>() <= size_of::<Scratch>());

static SCRATCH: Scratch = Scratch(core::cell::UnsafeCell::new([0; 1024]));

/// Where the built-in's structure for a list has its knotes. It is private to the built-in; the
/// gate is tied to one kernel version, and the versions we are built for have it here.
const LIO_KLIST: usize = 112;

/// Asks the built-in's filter for itself: its attach is made to accept a knote on a scratch kqueue.
/// May sleep.
///
/// # Errors
/// As kqueue(2).
fn find_builtin(kind: Kind) -> Result<(), c_int> {
    if !kind.builtin().is_null() {
        return Ok(());
    }
    let offset = match kind {
        Kind::Aio => core::mem::offset_of!(sys::kaiocb, klist),
        Kind::Lio => LIO_KLIST,
    };
    let td = super::curthread();
    // SAFETY: a module event has a process with descriptors. The scratch object is ours alone,
    // large enough for either structure, and has a list of knotes where the built-in looks for it;
    // the kqueue, and with it the knote, is closed before anybody else uses it.
    unsafe {
        let kept = (*td).td_uretoff.tdu_retval;
        let made = sys::kern_kqueue(td, 0, ptr::null_mut());
        let fd = (*td).td_uretoff.tdu_retval[0] as c_int;
        (*td).td_uretoff.tdu_retval = kept;
        if made != 0 {
            return Err(made);
        }
        let object = SCRATCH.0.get().cast::<u8>();
        let list = object.add(offset).cast::<sys::knlist>();
        sys::knlist_init_mtx(list, ptr::null_mut());
        let mut kev: sys::kevent = MaybeUninit::zeroed().assume_init();
        kev.ident = object.addr() as u64;
        kev.filter = kind.number() as i16;
        kev.flags = (sys::EV_ADD | sys::EV_ENABLE | sys::EV_FLAG1) as u16;
        kev.data = object as i64;
        let registered = sys::kqfd_register(fd, &mut kev, td, sys::M_WAITOK as c_int);
        let kn = (*list).kl_list.slh_first;
        if !kn.is_null() {
            let table = (*kn).kn_fop.cast_mut();
            let attach: Attach = (*table).f_attach;
            let attach = attach.map_or(ptr::null_mut(), |attach| attach as *mut c_void);
            ORIGINAL[kind as usize].store(attach, SeqCst);
            BUILTIN[kind as usize].store(table, SeqCst);
        }
        // Whoever has got hold of the descriptor meanwhile gets no knote with it.
        sys::knlist_cleardel(list, td, 0, 1);
        let _ = sys::kern_close(td, fd);
        sys::knlist_destroy(list);
        if registered != 0 {
            return Err(registered);
        }
    }
    if kind.builtin().is_null() { Err(sys::ENXIO as c_int) } else { Ok(()) }
}

/// Makes a filter ours, or the built-in's. False: a kqueue holds an event of it for more than a
/// second, or somebody else has put his own function into the built-in's table. May sleep.
fn exchange(kind: Kind, ours: bool) -> bool {
    if kind.is_ours() == ours {
        return true;
    }
    let done =
        if kind.is_writable() { exchange_attach(kind, ours) } else { exchange_tables(kind, ours) };
    if done {
        OURS[kind as usize].store(ours, SeqCst);
    }
    done
}

fn exchange_attach(kind: Kind, ours: bool) -> bool {
    let original = ORIGINAL[kind as usize].load(SeqCst);
    let (from, to) =
        if ours { (original, kind.our_attach()) } else { (kind.our_attach(), original) };
    if ours {
        // SAFETY: as in attach_word.
        let word = unsafe { AtomicPtr::from_ptr((&raw mut (*kind.builtin()).f_touch).cast()) };
        let ours = touch as *mut c_void;
        if let Err(other) = word.compare_exchange(ptr::null_mut(), ours, SeqCst, SeqCst)
            && other != ours
        {
            return false;
        }
    }
    kind.attach_word().compare_exchange(from, to, SeqCst, SeqCst).is_ok()
}

fn exchange_tables(kind: Kind, ours: bool) -> bool {
    const TRIES: u32 = 100;
    const PAUSE: i64 = (1 << 32) / 100;
    let to = if ours { kind.ours() } else { kind.builtin().cast_const() };
    for _ in 0..TRIES {
        // SAFETY: both tables are resident. The number is a filter of this kernel.
        unsafe {
            if sys::kqueue_del_filteropts(kind.number()) == 0 {
                // The place is empty: nobody else gives this filter.
                return sys::kqueue_add_filteropts(kind.number(), to) == 0;
            }
            sys::pause_sbt(c"aiofilt".as_ptr(), PAUSE, 0, 0);
        }
    }
    false
}

/// Makes both filters ours, or none. May sleep.
///
/// # Errors
/// EBUSY: a filter cannot be had now; one line is in the message buffer. Else as kqueue(2).
pub fn filters_take() -> Result<(), c_int> {
    for kind in Kind::ALL {
        find_builtin(kind).inspect_err(|&error| {
            // SAFETY: the format takes a number.
            unsafe {
                sys::printf(
                    c"aio_rs: not loaded: the kernel's AIO filter was not found (error %d); report this\n".as_ptr(),
                    error,
                )
            };
        })?;
    }
    if Kind::ALL.into_iter().all(|kind| exchange(kind, true)) {
        return Ok(());
    }
    // Ours hands everything on, so one that cannot be given back may stay.
    filters_give_back();
    // SAFETY: the format takes one string.
    unsafe {
        sys::printf(
            c"aio_rs: not loaded: %s\n".as_ptr(),
            c"a kqueue holds an AIO event, or another module has the filter; try again without it"
                .as_ptr(),
        )
    };
    Err(sys::EBUSY as c_int)
}

/// Gives both filters back to the built-in. False: one could not be; then both are ours as before
/// where that could be had ([`filters_are_ours`]). May sleep.
pub fn filters_give_back() -> bool {
    if Kind::ALL.into_iter().all(|kind| exchange(kind, false)) {
        return true;
    }
    for kind in Kind::ALL {
        exchange(kind, true);
    }
    false
}

/// Whether both filters are ours. Only then may an event of ours be registered.
pub fn filters_are_ours() -> bool {
    Kind::ALL.into_iter().all(Kind::is_ours)
}
