// SPDX-License-Identifier: BSD-2-Clause
//! The kernel's linker: takes a module's file as it is, refuses what link_elf_obj(4)'s code refuses,
//! places and relocates its sections, and runs its SYSINITs and events (kld(4), module(9)).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_void};

use kocheck::elf::{self, Object};
use kocheck::{loadable, report::Findings};

use crate::state::Held;
use crate::{builtin, imports, mem, probe, proc, report, sched, sys, sysctl, text};

/// Where modules and everything they refer to lies: relocations have 32 bits, with a sign.
const AREA: usize = 0x4000_0000;
const AREA_SIZE: usize = 0x3000_0000;
const PAGE: usize = 4096;

const SHF_WRITE: u64 = 1;
const SHF_EXECINSTR: u64 = 4;
const STB_GLOBAL: u8 = 1;
const STB_WEAK: u8 = 2;
const SHN_ABS: u16 = 0xfff1;
const R_X86_64_NONE: u32 = 0;
const R_X86_64_64: u32 = 1;
const R_X86_64_PC32: u32 = 2;
const R_X86_64_PLT32: u32 = 4;
const R_X86_64_32S: u32 = 11;

/// The kernel's own module version: what a DECLARE_MODULE(9) depends on.
const VERSION: i32 = sys::HOSTKERN_FREEBSD_VERSION as i32;

/// A module file that is loaded.
struct Kld {
    name: String,
    /// What kldload(2) answers.
    number: i32,
    start: usize,
    end: usize,
    /// Global symbols, for modules that depend on this one.
    globals: BTreeMap<String, usize>,
    /// All functions, by address, for messages.
    functions: BTreeMap<usize, (String, u64)>,
    /// Module names and versions it provides.
    versions: Vec<(String, i32)>,
    modules: Vec<String>,
    depends: Vec<String>,
    uninits: Vec<*const sys::sysinit>,
    /// Registered by module_register_init: what gets events.
    events: Vec<*const sys::moduledata>,
}

struct Klds {
    next: usize,
    exports: BTreeMap<&'static str, usize>,
    loaded: Vec<Kld>,
    /// What was unloaded, for messages about who comes back to it.
    gone: Vec<Kld>,
    /// Somebody loads or unloads: kld_sx.
    busy: bool,
    /// What is being loaded, while its SYSINITs run, and the error one of them left.
    loading: Option<Kld>,
    error: c_int,
}

static KLDS: Held<Klds> = Held::new(Klds {
    next: AREA,
    exports: BTreeMap::new(),
    loaded: Vec::new(),
    gone: Vec::new(),
    busy: false,
    loading: None,
    error: 0,
});

/// Where threads wait that want to load or unload: odd, as all channels of ours.
const CHAN: u64 = 0x4b << 56 | 1;

/// One thread at a time loads or unloads.
fn alone<R>(action: impl FnOnce() -> R) -> R {
    while KLDS.with(|klds| std::mem::replace(&mut klds.busy, true)) {
        sched::sleep(CHAN, false, "kld", None, || ());
    }
    let result = action();
    KLDS.with(|klds| klds.busy = false);
    sched::wakeup(CHAN, false);
    result
}

/// Makes the area and the symbols of the kernel.
pub fn start() {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    mem::map_fixed(AREA, AREA_SIZE, prot);
    // Calls reach us by a jump near the modules; the address of a function is that of its jump.
    let stubs = reserve(imports::functions().count() * 16);
    let mut at = stubs;
    for import in imports::functions() {
        let target = import.address as u64;
        let mut code = [0xccu8; 16];
        code[..2].copy_from_slice(&[0x49, 0xbb]);
        code[2..10].copy_from_slice(&target.to_le_bytes());
        code[10..13].copy_from_slice(&[0x41, 0xff, 0xe3]);
        // SAFETY: inside the area, which is ours.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
        KLDS.with(|klds| klds.exports.insert(import.name, at));
        at += code.len();
    }
    protect(stubs, at, libc::PROT_READ | libc::PROT_EXEC);
    for object in imports::objects() {
        let at = reserve(object.size);
        (object.init)(at as *mut u8);
        KLDS.with(|klds| klds.exports.insert(object.name, at));
    }
}

/// The name of the kernel's own AIO, when it is loaded as an object.
pub const KERNELS: &str = "the kernel's own AIO";

/// A jump to a function of ours, for code that reaches only what is near.
pub fn stub_of(function: *const ()) -> usize {
    let known = STUBS.with(|stubs| stubs.get(&(function as usize)).copied());
    known.unwrap_or_else(|| {
        let at = jump(function as usize, 0);
        STUBS.with(|stubs| stubs.insert(function as usize, at));
        at
    })
}

static STUBS: Held<BTreeMap<usize, usize>> = Held::new(BTreeMap::new());

/// Code that calls a function with a word.
fn jump(function: usize, argument: usize) -> usize {
    let at = reserve(PAGE);
    let mut code = Vec::new();
    if argument != 0 {
        // mov rdi, argument
        code.extend([0x48, 0xbf]);
        code.extend(argument.to_le_bytes());
    }
    // mov r11, function; jmp r11
    code.extend([0x49, 0xbb]);
    code.extend(function.to_le_bytes());
    code.extend([0x41, 0xff, 0xe3]);
    // SAFETY: inside the area, which is ours.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
    protect(at, at + PAGE, libc::PROT_READ | libc::PROT_EXEC);
    at
}

/// A function that ends the run when it is called: one of the kernel's that is not emulated.
fn not_emulated(name: &str) -> usize {
    unsafe extern "C" fn end(name: *const c_char) -> ! {
        // SAFETY: the name below, which stays.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        report::panic(&format!("{name} is not emulated"))
    }
    let text = std::ffi::CString::new(name).expect("a name").into_raw();
    jump(end as *const () as usize, text as usize)
}

/// A global symbol of the kernel's own AIO.
pub fn global(name: &str) -> Option<usize> {
    KLDS.with(|klds| {
        let all = klds.loaded.iter().chain(klds.loading.iter());
        all.into_iter().find(|kld| kld.name == KERNELS)?.globals.get(name).copied()
    })
}

/// Pages of the area, never given back: what was unloaded stays out of reach.
fn reserve(size: usize) -> usize {
    KLDS.with(|klds| {
        let at = klds.next;
        klds.next += size.next_multiple_of(PAGE) + PAGE;
        assert!(klds.next < AREA + AREA_SIZE, "no more room for modules");
        at
    })
}

fn protect(start: usize, end: usize, prot: c_int) {
    let len = end.next_multiple_of(PAGE) - start;
    // SAFETY: pages of the area.
    if unsafe { libc::mprotect(start as *mut c_void, len, prot) } != 0 {
        report::give_up("a module's pages cannot be protected");
    }
}

/// Where one of the kernel's own objects is that modules see.
pub fn kernel_object(name: &str) -> usize {
    KLDS.with(|klds| klds.exports.get(name).copied()).expect("an object of imports::objects")
}

/// Says it on the console, as the kernel does in its message buffer.
fn say(text: &str) {
    report::console(&format!("{text}\n"));
}

/// Loads a file that was read already: kldload(2). May sleep.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn load(name: &str, file: &[u8]) -> Result<(), String> {
    alone(|| load_file(name, file))
}

fn load_file(name: &str, file: &[u8]) -> Result<(), String> {
    let mut findings = Findings::new(name);
    let object = elf::parse(file, &mut findings);
    let Some(object) = object else {
        return Err(format!(
            "{}: not a kernel module that can be read",
            findings.into_lines().join("; ")
        ));
    };
    loadable::check(&object, &mut findings);
    if !findings.is_empty() {
        return Err(findings.into_lines().join("; "));
    }
    let (kld, inits) = link(name, &object)?;
    KLDS.with(|klds| {
        klds.loading = Some(kld);
        klds.error = 0;
    });
    for init in inits {
        // SAFETY: a struct sysinit of the module that is mapped; the function takes its argument.
        unsafe {
            if let Some(function) = (*init).func {
                sched::in_module(|| function((*init).udata));
            }
        }
    }
    let (kld, error) = KLDS.with(|klds| (klds.loading.take(), klds.error));
    let kld = kld.expect("just put there");
    if error == 0 {
        KLDS.with(|klds| klds.loaded.push(kld));
        return Ok(());
    }
    forget(kld);
    Err(format!("{name}: its load event failed with error {error}"))
}

/// A file's last functions run, and its memory goes: whoever still comes there faults.
fn forget(kld: Kld) {
    uninit(&kld);
    sysctl::assert_none_in(kld.start..kld.end);
    probe::unloaded(kld.start);
    protect(kld.start, kld.end, libc::PROT_NONE);
    KLDS.with(|klds| klds.gone.push(kld));
}

/// A symbol as the kernel sees it: an address, or nothing.
fn lookup(klds: &Klds, depends: &[String], name: &str) -> Option<usize> {
    // What the kernel's own AIO has is the kernel's.
    let own = klds.loaded.iter().find(|kld| kld.name == KERNELS);
    if let Some(&at) = own.and_then(|own| own.globals.get(name)) {
        return Some(at);
    }
    if let Some(&at) = klds.exports.get(name) {
        return Some(at);
    }
    let provider = |kld: &&Kld| kld.versions.iter().any(|(module, _)| depends.contains(module));
    klds.loaded.iter().filter(provider).find_map(|kld| kld.globals.get(name).copied())
}

type Sysinits = Vec<*const sys::sysinit>;

fn link(name: &str, object: &Object) -> Result<(Kld, Sysinits), String> {
    // Sections, each at its alignment, as the kernel lays them out.
    let mut size = 0usize;
    let mut offsets = BTreeMap::new();
    for (index, section) in object.sections.iter().enumerate() {
        if section.is_loaded() {
            // An object's text and data share no page, as those of a module do not.
            let align = if name == KERNELS { PAGE } else { section.align as usize };
            size = size.next_multiple_of(align);
            offsets.insert(index, size);
            size += section.size as usize;
        }
    }
    let start = reserve(size);
    for (&index, &offset) in &offsets {
        let section = &object.sections[index];
        if !section.data.is_empty() {
            let to = (start + offset) as *mut u8;
            // SAFETY: room for the whole section was reserved.
            unsafe { std::ptr::copy_nonoverlapping(section.data.as_ptr(), to, section.data.len()) };
        }
    }
    let place = |symbol: &elf::Symbol| -> Option<usize> {
        if symbol.shndx == SHN_ABS {
            return Some(symbol.value as usize);
        }
        Some(start + offsets.get(&symbol.section()?)? + symbol.value as usize)
    };
    // Local relocations come first, so that the module's own declarations can be read.
    let mut missing = Vec::new();
    let mut values: Vec<Option<usize>> = object.symbols.iter().map(place).collect();
    relocate(object, &offsets, start, &values)?;
    let set = |wanted: &str| -> Vec<usize> {
        let mut all = Vec::new();
        for (index, section) in object.sections.iter().enumerate() {
            if let Some(offset) = offsets.get(&index).filter(|_| section.name == wanted) {
                let words = (start + offset) as *const usize;
                // SAFETY: the section was placed there, and is an array of pointers.
                all.extend((0..section.size as usize / 8).map(|word| unsafe { *words.add(word) }));
            }
        }
        all
    };
    let mut kld = Kld {
        name: name.to_owned(),
        // Unlike any other's, as they are never given back.
        number: start as i32,
        start,
        end: start + size,
        globals: BTreeMap::new(),
        functions: BTreeMap::new(),
        versions: Vec::new(),
        modules: Vec::new(),
        depends: Vec::new(),
        uninits: Vec::new(),
        events: Vec::new(),
    };
    read_metadata(&mut kld, &set("set_modmetadata_set"))?;
    // Only what a relocation refers to is looked up.
    let loaded = object.relocs.iter().filter(|table| offsets.contains_key(&table.target));
    let used: BTreeSet<u32> =
        loaded.flat_map(|table| table.entries.iter().map(|reloc| reloc.symbol)).collect();
    KLDS.with(|klds| {
        for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
            if symbol.shndx == 0 && used.contains(&(index as u32)) {
                values[index] = lookup(klds, &kld.depends, &symbol.name);
                if values[index].is_none() {
                    if symbol.bind == STB_WEAK {
                        values[index] = Some(0);
                    } else {
                        missing.push(symbol.name.clone());
                    }
                }
            }
        }
    });
    if builtin::is_loaded() && name == KERNELS {
        for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
            if values[index].is_none() && missing.contains(&symbol.name) {
                values[index] = Some(not_emulated(&symbol.name));
            }
        }
        missing.clear();
    }
    if !missing.is_empty() {
        return Err(format!(
            "{name}: the host kernel has no {}; tests/hostkern/src/imports.rs is where to add it",
            missing.join(", ")
        ));
    }
    relocate(object, &offsets, start, &values)?;
    if name == KERNELS {
        // A node comes before what is below it.
        let all = set("set_sysctl_set").into_iter().map(|at| at as *mut sys::sysctl_oid);
        // SAFETY: structs of the object, as its set says.
        let is_node = |oid: &*mut sys::sysctl_oid| unsafe { (**oid).oid_kind } & sys::CTLTYPE == sys::CTLTYPE_NODE;
        let (nodes, leaves): (Vec<_>, Vec<_>) = all.partition(is_node);
        nodes.into_iter().chain(leaves).for_each(sysctl::register);
    }
    for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
        let Some(at) = values[index].filter(|_| symbol.section().is_some()) else { continue };
        if symbol.bind == STB_GLOBAL {
            kld.globals.insert(symbol.name.clone(), at);
        }
        if symbol.kind == 2 {
            kld.functions.insert(at, (elf::demangle(&symbol.name), symbol.size));
        }
    }
    // Pages shared by sections get what each of them needs.
    let mut prots: BTreeMap<usize, c_int> = BTreeMap::new();
    for (&index, &offset) in &offsets {
        let section = &object.sections[index];
        let mut prot = libc::PROT_READ;
        if section.flags & SHF_WRITE != 0 {
            prot |= libc::PROT_WRITE;
        }
        if section.flags & SHF_EXECINSTR != 0 {
            prot |= libc::PROT_EXEC;
        }
        let end = offset + section.size as usize;
        for page in (offset / PAGE..end.div_ceil(PAGE)).map(|page| page * PAGE) {
            *prots.entry(page).or_insert(0) |= prot;
        }
    }
    for (page, prot) in prots {
        protect(start + page, start + page + PAGE, prot);
    }
    probe::loaded(name, kld.start, kld.end, decoded(object, &offsets, &values, &kld));
    let mut inits: Sysinits = set("set_sysinit_set").into_iter().map(|at| at as *const _).collect();
    // SAFETY: structs of the module, as its sets say.
    inits.sort_by_key(|&init| unsafe { ((*init).subsystem, (*init).order) });
    let mut uninits: Sysinits =
        set("set_sysuninit_set").into_iter().map(|at| at as *const _).collect();
    // SAFETY: as above.
    uninits.sort_by_key(|&init| std::cmp::Reverse(unsafe { ((*init).subsystem, (*init).order) }));
    kld.uninits = uninits;
    Ok((kld, inits))
}

/// The module's text, which is in place.
fn decoded(
    object: &Object,
    offsets: &BTreeMap<usize, usize>,
    values: &[Option<usize>],
    kld: &Kld,
) -> text::Text {
    let data = |table: &&elf::RelocTable| {
        offsets.contains_key(&table.target) && !object.sections[table.target].is_code()
    };
    let target = |reloc: &elf::Reloc| {
        let value = values.get(reloc.symbol as usize).copied().flatten()?;
        Some((value as u64).wrapping_add_signed(reloc.addend))
    };
    let entries = object.relocs.iter().filter(data).flat_map(|table| &table.entries);
    // And what other modules may call.
    let globals = kld.globals.values().map(|&at| at as u64);
    let targets: BTreeSet<u64> = entries.filter_map(target).chain(globals).collect();
    text::decode(&kld.functions, &targets, |at, size| {
        // SAFETY: a function of the module, whose text stays as it is while it is decoded.
        unsafe { std::slice::from_raw_parts(at as *const u8, size) }
    })
}

fn c_string(at: *const c_char) -> String {
    // SAFETY: a C string of the module's metadata.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// MODULE_DEPEND and MODULE_VERSION(9), and the names of modules.
fn read_metadata(kld: &mut Kld, set: &[usize]) -> Result<(), String> {
    let mut needs = Vec::new();
    for &at in set {
        let data = at as *const sys::mod_metadata;
        // SAFETY: the module's own structs, as its set says; their data is of the type they name.
        unsafe {
            if (*data).md_version != sys::MDT_STRUCT_VERSION as c_int {
                return Err(format!("{}: metadata of version {}", kld.name, (*data).md_version));
            }
            match (*data).md_type as u32 {
                sys::MDT_DEPEND => {
                    let depend = &*(*data).md_data.cast::<sys::mod_depend>();
                    let range = (depend.md_ver_minimum, depend.md_ver_maximum);
                    needs.push((c_string((*data).md_cval), range));
                }
                sys::MDT_VERSION => {
                    let version = (*(*data).md_data.cast::<sys::mod_version>()).mv_version;
                    kld.versions.push((c_string((*data).md_cval), version));
                }
                sys::MDT_MODULE => {
                    kld.modules.push(c_string((*(*data).md_data.cast::<sys::moduledata>()).name));
                }
                _ => {}
            }
        }
    }
    KLDS.with(|klds| {
        for (needed, (least, most)) in needs {
            let mut had = vec![("kernel".to_owned(), VERSION)];
            had.extend(klds.loaded.iter().flat_map(|kld| kld.versions.clone()));
            let fits = |(name, version): &(String, i32)| *name == needed && (least..=most).contains(version);
            if !had.iter().any(fits) {
                let found = had.iter().find(|(name, _)| *name == needed);
                let found = found.map_or("none".to_owned(), |(_, version)| version.to_string());
                return Err(format!(
                    "KLD {}: depends on {needed} {least} to {most}, found {found}: not available or version mismatch",
                    kld.name
                ));
            }
            kld.depends.push(needed);
        }
        for module in &kld.modules {
            if klds.loaded.iter().any(|other| other.modules.contains(module)) {
                return Err(format!("{}: module {module} is loaded already", kld.name));
            }
        }
        Ok(())
    })
}

/// Writes every relocation whose symbol has a value.
fn relocate(
    object: &Object,
    offsets: &BTreeMap<usize, usize>,
    start: usize,
    values: &[Option<usize>],
) -> Result<(), String> {
    for table in &object.relocs {
        let Some(offset) = offsets.get(&table.target) else { continue };
        for reloc in &table.entries {
            if reloc.kind == R_X86_64_NONE {
                continue;
            }
            let Some(value) = values.get(reloc.symbol as usize).copied().flatten() else {
                continue;
            };
            let at = start + offset + reloc.offset as usize;
            let target = (value as i64).wrapping_add(reloc.addend);
            let narrow = |value: i64| {
                i32::try_from(value).map_err(|_| {
                    let name = object.symbol_name(reloc.symbol);
                    format!("a relocation for {name} does not reach it")
                })
            };
            // SAFETY: loadable::check has seen that the relocation lies in its section.
            unsafe {
                match reloc.kind {
                    R_X86_64_64 => (at as *mut i64).write_unaligned(target),
                    R_X86_64_32S => (at as *mut i32).write_unaligned(narrow(target)?),
                    R_X86_64_PC32 | R_X86_64_PLT32 => {
                        (at as *mut i32).write_unaligned(narrow(target.wrapping_sub(at as i64))?)
                    }
                    kind => return Err(format!("relocation type {kind} is not handled")),
                }
            }
        }
    }
    Ok(())
}

/// What SYSINIT of a DECLARE_MODULE(9) calls: registers the module and sends MOD_LOAD.
pub fn register_init(data: *const sys::moduledata) {
    let code = event(data, sys::MOD_LOAD as c_int);
    KLDS.with(|klds| {
        if code != 0 {
            klds.error = code;
        } else if let Some(kld) = &mut klds.loading {
            kld.events.push(data);
        }
    });
    if code != 0 {
        // SAFETY: a module's data, valid while it is loaded.
        let name = c_string(unsafe { (*data).name });
        say(&format!("module_register_init: MOD_LOAD ({name}) error {code}"));
    }
}

fn event(data: *const sys::moduledata, what: c_int) -> c_int {
    // SAFETY: a module's data, valid while it is loaded; the handler takes the module, which it
    // does not look into, the event and its own argument.
    let code = unsafe {
        match (*data).evhand {
            Some(handler) => {
                sched::in_module(|| handler(data.cast_mut().cast(), what, (*data).priv_))
            }
            None => 0,
        }
    };
    sched::assert_no_locks("a module event");
    code
}

fn uninit(kld: &Kld) {
    for &init in &kld.uninits {
        // SAFETY: as for SYSINITs.
        unsafe {
            if let Some(function) = (*init).func {
                sched::in_module(|| function((*init).udata));
            }
        }
    }
}

/// kldunloadf(2) of a file; with `force` a module's wish to be left alone is ignored. May sleep.
///
/// # Errors
/// What an event handler said, as an errno; ENOENT when it is not loaded.
pub fn unload(name: &str, force: bool) -> Result<(), c_int> {
    alone(|| unload_file(name, force))
}

fn unload_file(name: &str, force: bool) -> Result<(), c_int> {
    let events = KLDS.with(|klds| {
        let kld = klds.loaded.iter().find(|kld| kld.name == name).ok_or(2)?;
        let needed =
            |other: &&Kld| kld.versions.iter().any(|(module, _)| other.depends.contains(module));
        match klds.loaded.iter().find(needed) {
            Some(_) => Err(16),
            None => Ok(kld.events.clone()),
        }
    })?;
    for &data in &events {
        match event(data, sys::MOD_QUIESCE as c_int) {
            0 | 45 => {}
            _ if force => {}
            code => return Err(code),
        }
    }
    for &data in &events {
        match event(data, sys::MOD_UNLOAD as c_int) {
            0 => {}
            code => return Err(code),
        }
    }
    let kld = KLDS.with(|klds| {
        let index = klds.loaded.iter().position(|kld| kld.name == name).expect("just seen");
        klds.loaded.remove(index)
    });
    forget(kld);
    Ok(())
}

/// The number of a file that is loaded: kldfind(2).
pub fn number(name: &str) -> Option<i32> {
    KLDS.with(|klds| klds.loaded.iter().find(|kld| kld.name == name).map(|kld| kld.number))
}

/// The name of the file with a number.
pub fn name(number: i32) -> Option<String> {
    KLDS.with(|klds| {
        klds.loaded.iter().find(|kld| kld.number == number).map(|kld| kld.name.clone())
    })
}

/// Names an address in a module.
pub fn symbolize(at: u64) -> Option<String> {
    KLDS.try_with(|klds| {
        let all = klds.loaded.iter().chain(klds.loading.iter()).chain(klds.gone.iter());
        let kld = all.into_iter().find(|kld| (kld.start..kld.end).contains(&(at as usize)))?;
        let (start, (name, _)) = kld.functions.range(..=at as usize).next_back()?;
        let name = rustc_demangle::demangle(name);
        let gone = if klds.gone.iter().any(|its| its.start == kld.start) {
            ", which was unloaded"
        } else {
            ""
        };
        Some(format!("{name:#}+{:#x} in {}{gone}", at as usize - start, kld.name))
    })
    .flatten()
}

/// Module code, or the emulation, did something the processor refuses. Ends the process.
pub fn fault(signal: c_int, rip: u64, address: u64, rbp: u64) -> ! {
    let name = |at: u64| symbolize(at).unwrap_or_else(|| format!("{at:#x}"));
    let what = match signal {
        libc::SIGILL => "undefined instruction (a Rust abort or panic ends so)".to_owned(),
        libc::SIGSEGV | libc::SIGBUS if (0x20_0000..AREA as u64).contains(&address) => {
            format!("access to user memory at {address:#x} past copyin(9)")
        }
        libc::SIGSEGV | libc::SIGBUS if rip == address => {
            format!("a thread is where no code is, at {address:#x},")
        }
        libc::SIGSEGV | libc::SIGBUS => match unloaded(address) {
            Some(name) => format!("access to {address:#x}, which was in {name} before its unload,"),
            None => format!("access to {address:#x}"),
        },
        signal => format!("signal {signal}"),
    };
    let mut why = format!("{what} at {}", name(rip));
    if (AREA..AREA + AREA_SIZE).contains(&(rip as usize)) {
        // The modules keep frame pointers.
        for back in ways(rbp) {
            why += &format!("\n    called from {}", name(back));
        }
    }
    report::panic_at(&why, &[])
}

/// The file that had an address, if it was unloaded.
fn unloaded(at: u64) -> Option<String> {
    KLDS.try_with(|klds| {
        let its = klds.gone.iter().find(|kld| (kld.start..kld.end).contains(&(at as usize)))?;
        Some(its.name.clone())
    })
    .flatten()
}

/// Return addresses in modules, from a frame on: of the innermost call into the kernel.
fn ways(frame: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let mut frame = frame;
    for _ in 0..64 {
        if frame < 0x10000 || !frame.is_multiple_of(8) {
            break;
        }
        // SAFETY: a frame pointer of a thread that is stopped or ourselves; the chain is its stack.
        let (next, back) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        let inside = (AREA as u64..(AREA + AREA_SIZE) as u64).contains(&back);
        if inside {
            found.push(back);
        } else if !found.is_empty() {
            break;
        }
        if next <= frame {
            break;
        }
        frame = next;
    }
    found
}

fn own_frame() -> u64 {
    let frame: u64;
    // SAFETY: reads a register, which we are built to keep the frame in.
    unsafe { std::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    frame
}

/// Where in a module it was called last.
pub fn site() -> u64 {
    ways(own_frame()).into_iter().next().unwrap_or(0)
}

/// An address in a module, for people.
pub fn symbol(at: u64) -> String {
    symbolize(at).unwrap_or_else(|| format!("{at:#x}"))
}

/// The way from a module, for people; empty if it came from none.
pub fn way_names() -> Vec<String> {
    ways(own_frame()).into_iter().map(symbol).collect()
}

/// What a thread belongs to, for reports.
pub fn proc_name(td: *mut sys::thread) -> String {
    proc::describe(td)
}

/// Whether an address is in a module that is loaded, or being loaded.
pub fn contains(at: usize) -> bool {
    KLDS.with(|klds| {
        let mut all = klds.loaded.iter().chain(klds.loading.iter());
        all.any(|kld| (kld.start..kld.end).contains(&at))
    })
}
