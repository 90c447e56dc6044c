// SPDX-License-Identifier: BSD-2-Clause
//! Pages of programs that are held for a device, and kernel addresses they are mapped at.
//!
//! A struct vm_page is only a number to a module: it has an address where nothing is, so that looking
//! into it faults. A held page keeps its memory, whatever becomes of the mapping it was found by. A
//! kernel address is no memory either: a device finds the pages behind it here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::state::Held;
use crate::{report, sys, vm};

const PAGE: usize = vm::PAGE as usize;
/// Where struct vm_pages and mapped pages seem to be.
const VM_PAGES: usize = 0x0c00_0000_0000;
const VM_PAGE: usize = 104;
const KVA: usize = 0x0c80_0000_0000;

struct Page {
    host: usize,
    _memory: Arc<vm::Object>,
    holds: usize,
}

struct Pages {
    /// By the address of the struct vm_page, and that by the host's address of the memory.
    held: BTreeMap<usize, Page>,
    by_memory: BTreeMap<usize, usize>,
    free: Vec<usize>,
    made: usize,
    /// Ranges of kernel addresses by their start, and the pages that are mapped in them.
    ranges: BTreeMap<usize, usize>,
    mapped: BTreeMap<usize, usize>,
    next: usize,
}

static PAGES: Held<Pages> = Held::new(Pages {
    held: BTreeMap::new(),
    by_memory: BTreeMap::new(),
    free: Vec::new(),
    made: 0,
    ranges: BTreeMap::new(),
    mapped: BTreeMap::new(),
    next: KVA,
});

/// vm_fault_quick_hold_pages: the pages of a range of an address space, all of them or none.
pub fn hold(map: usize, at: u64, len: usize, write: bool) -> Option<Vec<usize>> {
    let vm = map - std::mem::offset_of!(sys::vmspace, vm_map);
    let end = at.checked_add(len as u64)?;
    let first = at / vm::PAGE * vm::PAGE;
    let found: Vec<_> =
        (first..end).step_by(PAGE).map_while(|at| vm::page(vm, at, write)).collect();
    if found.len() != (end - first).div_ceil(vm::PAGE) as usize {
        return None;
    }
    Some(PAGES.with(|pages| {
        let each = found.into_iter().map(|(host, memory)| {
            let address = *pages.by_memory.entry(host).or_insert_with(|| {
                pages.free.pop().unwrap_or_else(|| {
                    pages.made += 1;
                    VM_PAGES + pages.made * VM_PAGE
                })
            });
            let new = || Page { host, _memory: memory, holds: 0 };
            pages.held.entry(address).or_insert_with(new).holds += 1;
            address
        });
        each.collect()
    }))
}

/// vm_page_unhold_pages, of one.
pub fn unhold(address: usize) {
    let gone = PAGES.with(|pages| {
        let Some(page) = pages.held.get_mut(&address) else {
            report::panic(&format!("a page is unheld that is not held ({address:#x})"));
        };
        page.holds -= 1;
        if page.holds > 0 {
            return None;
        }
        if pages.mapped.values().any(|&its| its == address) {
            report::panic("a page is unheld for the last time while it is mapped");
        }
        let page = pages.held.remove(&address)?;
        pages.by_memory.remove(&page.host);
        pages.free.push(address);
        Some(page)
    });
    // Its memory may go with it.
    drop(gone);
}

/// The memory of a held page.
pub fn memory(address: usize) -> *mut u8 {
    PAGES.with(|pages| match pages.held.get(&address) {
        Some(page) => page.host as *mut u8,
        None => report::panic(&format!("a device is given a page that is not held ({address:#x})")),
    })
}

/// The page that is mapped at a kernel address.
pub fn mapped_at(address: usize) -> usize {
    let page = address / PAGE * PAGE;
    PAGES.with(|pages| pages.mapped.get(&page).copied()).unwrap_or_else(|| {
        report::panic(&format!("a device is given {address:#x}, where no page is mapped"))
    })
}

/// kva_alloc(9).
pub fn alloc(size: usize) -> usize {
    PAGES.with(|pages| {
        let at = pages.next;
        // A page between, so that running over an end shows.
        pages.next += size + PAGE;
        pages.ranges.insert(at, size);
        at
    })
}

/// kva_free(9).
pub fn free(at: usize, size: usize) {
    PAGES.with(|pages| {
        if pages.ranges.remove(&at) != Some(size) {
            report::panic(&format!("kva_free of {size} bytes at {at:#x}, which were not had so"));
        }
        if pages.mapped.range(at..at + size).next().is_some() {
            report::panic("kva_free of addresses with pages mapped");
        }
    });
}

/// pmap_qenter(9).
pub fn map(at: usize, addresses: &[usize]) {
    PAGES.with(|pages| {
        let range = pages.ranges.range(..=at).next_back();
        let len = addresses.len() * PAGE;
        if range.is_none_or(|(&start, &size)| at + len > start + size) {
            report::panic("pmap_qenter at addresses that kva_alloc did not give");
        }
        for (index, &page) in addresses.iter().enumerate() {
            if !pages.held.contains_key(&page) {
                report::panic("pmap_qenter of a page that is not held");
            }
            pages.mapped.insert(at + index * PAGE, page);
        }
    });
}

/// pmap_qremove(9).
pub fn unmap(at: usize, count: usize) {
    PAGES.with(|pages| {
        for index in 0..count {
            if pages.mapped.remove(&(at + index * PAGE)).is_none() {
                report::panic("pmap_qremove of an address where no page is mapped");
            }
        }
    });
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    PAGES.with(|pages| {
        let mut lines = Vec::new();
        if !pages.held.is_empty() {
            lines.push(format!("{} pages are held", pages.held.len()));
        }
        if !pages.ranges.is_empty() {
            lines.push(format!("{} ranges of kernel addresses are taken", pages.ranges.len()));
        }
        lines
    })
}
