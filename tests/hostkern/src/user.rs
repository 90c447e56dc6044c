// SPDX-License-Identifier: BSD-2-Clause
//! Into user mode and back.
//!
//! A program's code runs on the host's processor as it is, on the emulated thread's host thread. Its
//! `syscall` instructions are caught by Linux's system call user dispatch, everything it does wrong
//! by signals; either way the signal handler only stores the registers and continues the host thread
//! behind [`enter`].

use std::cell::Cell;
use std::ffi::{c_int, c_void};

use crate::{module, probe, report, vm};

/// A program's registers.
#[repr(C)]
#[derive(Clone, Default)]
pub struct Frame {
    /// The host thread's stack while the program runs.
    pub host_rsp: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    /// Why it stopped: 0 for a system call, else the signal.
    pub trap: u64,
    /// Where it faulted.
    pub address: u64,
}

/// Why a program stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    Syscall,
    /// Signal, and the address it is about.
    Fault(c_int, u64),
}

std::arch::global_asm!(
    // fn(frame): continues the program; comes back by hostkern_resume.
    ".globl hostkern_enter",
    "hostkern_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov eax, ss",
    "push rax",
    "push [rdi + 64]",
    "push [rdi + 144]",
    "mov eax, cs",
    "push rax",
    "push [rdi + 136]",
    "mov rax, [rdi + 8]",
    "mov rbx, [rdi + 16]",
    "mov rcx, [rdi + 24]",
    "mov rdx, [rdi + 32]",
    "mov rsi, [rdi + 40]",
    "mov rbp, [rdi + 56]",
    "mov r8, [rdi + 72]",
    "mov r9, [rdi + 80]",
    "mov r10, [rdi + 88]",
    "mov r11, [rdi + 96]",
    "mov r12, [rdi + 104]",
    "mov r13, [rdi + 112]",
    "mov r14, [rdi + 120]",
    "mov r15, [rdi + 128]",
    "mov rdi, [rdi + 48]",
    "iretq",
    // With rsp as hostkern_enter or hostkern_call stored it.
    ".globl hostkern_resume",
    "hostkern_resume:",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // fn(function, argument, frame): calls it; hostkern_abandon comes back too.
    ".globl hostkern_call",
    "hostkern_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdx], rsp",
    "sub rsp, 8",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "add rsp, 8",
    "jmp hostkern_resume",
    // fn(rsp): leaves everything above a hostkern_call behind.
    ".globl hostkern_abandon",
    "hostkern_abandon:",
    "mov rsp, rdi",
    "jmp hostkern_resume",
    // Where a thread of module code goes on that met a breakpoint, with the address of the
    // instruction on its stack: has another thread run, and executes it. Everything is kept, flags
    // too; the frame is one that a report can follow.
    ".globl hostkern_stopped",
    "hostkern_stopped:",
    "push rbp",
    "mov rbp, rsp",
    "pushfq",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rdi, [rbp + 8]",
    "cld",
    "and rsp, -16",
    "call {stopped}",
    "lea rsp, [rbp - 15 * 8]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "popfq",
    "pop rbp",
    "ret",
    stopped = sym probe::stopped,
);

unsafe extern "C" {
    fn hostkern_enter(frame: *mut Frame);
    fn hostkern_resume();
    fn hostkern_call(function: *const c_void, argument: *mut c_void, frame: *mut Frame);
    fn hostkern_abandon(rsp: u64) -> !;
    fn hostkern_stopped();
}

thread_local! {
    /// The program that runs on this host thread.
    static FRAME: Cell<*mut Frame> = const { Cell::new(std::ptr::null_mut()) };
    /// The stack of a kernel process's main function.
    static BASE: Cell<u64> = const { Cell::new(0) };
}

/// Runs the program until it makes a system call or faults.
pub fn enter(frame: &mut Frame) -> Trap {
    // Interrupts on, and nothing a program may not set.
    frame.rflags = frame.rflags & 0xcd5 | 0x202;
    FRAME.set(frame);
    // SAFETY: the registers are the program's, whose memory is mapped; the handler comes back here.
    unsafe { hostkern_enter(frame) };
    FRAME.set(std::ptr::null_mut());
    match frame.trap {
        0 => Trap::Syscall,
        signal => Trap::Fault(signal as c_int, frame.address),
    }
}

/// Runs a kernel process's main function until it returns or [`abandon`] is called.
///
/// # Safety
/// `function` is `extern "C" fn(*mut c_void)` and may be called with `argument`.
pub unsafe fn call(function: *const c_void, argument: *mut c_void) {
    let mut frame = Frame::default();
    let place = &raw mut frame;
    BASE.set(place as u64);
    // SAFETY: the caller's contract; the callee-saved registers are kept.
    unsafe { hostkern_call(function, argument, place) };
    BASE.set(0);
}

/// Ends what [`call`] began, from anywhere inside.
pub fn abandon() -> ! {
    let frame = BASE.get() as *const Frame;
    if frame.is_null() {
        report::panic("kproc_exit outside a kernel process");
    }
    // SAFETY: the frame is on the stack of `call`, which has not returned; what is between has no
    // destructors that matter: module code has none, and our functions hold nothing there.
    unsafe { hostkern_abandon((*frame).host_rsp) }
}

/// Sets the thread's %gs base, where the modules find struct pcpu.
pub fn set_gs(base: u64) {
    const ARCH_SET_GS: c_int = 0x1001;
    // SAFETY: user code on Linux does not use %gs.
    if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) } != 0 {
        report::give_up("the %gs base cannot be set");
    }
}

/// System calls by code below the window's end are the emulated programs'.
const PR_SET_SYSCALL_USER_DISPATCH: c_int = 59;
const PR_SYS_DISPATCH_ON: u64 = 1;
/// 0 lets calls through, 1 catches them.
static CATCH: u8 = 1;

/// What each host thread needs before it can run programs.
pub fn prepare_host_thread() {
    const STACK: usize = 64 << 10;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, used as this thread's signal stack for as long as it lives.
    unsafe {
        let stack = libc::mmap(
            std::ptr::null_mut(),
            STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        );
        let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK };
        if libc::sigaltstack(&stack, std::ptr::null_mut()) != 0 {
            report::give_up("no signal stack");
        }
    }
    let start = vm::WINDOW_END;
    let len = 0x7fff_ffff_f000 - start;
    // SAFETY: calls from above the window, ours and libc's, go on as before.
    let code = unsafe {
        libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, start, len, &raw const CATCH)
    };
    if code != 0 {
        report::give_up(
            "this Linux has no system call user dispatch (5.11 or newer is needed, and a container must allow prctl)",
        );
    }
}

/// Catches what programs and modules do.
pub fn start() {
    let signals =
        [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
    for signal in signals {
        // SAFETY: the handler is async-signal-safe for interrupted programs, which hold no lock of
        // ours; for anything else it ends the process.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel passes to a SA_SIGINFO handler.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let regs = &mut context.uc_mcontext.gregs;
    let frame = FRAME.get();
    let rip = regs[libc::REG_RIP as usize] as u64;
    // SAFETY: si_addr is there for faults; for others it is some number.
    let address = unsafe { info.si_addr() } as u64;
    if signal == libc::SIGTRAP && rip >= vm::WINDOW_END {
        let at = rip.wrapping_sub(1);
        if let Some(stops) = probe::met(at as usize) {
            regs[libc::REG_RIP as usize] = at as i64;
            if stops {
                let rsp = regs[libc::REG_RSP as usize] as u64 - 8;
                // SAFETY: the stack of the thread that was in module code, which has no red zone.
                unsafe { (rsp as *mut u64).write(at) };
                regs[libc::REG_RSP as usize] = rsp as i64;
                regs[libc::REG_RIP as usize] = hostkern_stopped as *const () as i64;
            }
            return;
        }
    }
    if frame.is_null() || rip >= vm::WINDOW_END {
        module::fault(signal, rip, address, regs[libc::REG_RBP as usize] as u64);
    }
    let reg = |index: c_int| regs[index as usize] as u64;
    // SAFETY: enter set it, and waits for us.
    let frame = unsafe { &mut *frame };
    frame.rax = reg(libc::REG_RAX);
    frame.rbx = reg(libc::REG_RBX);
    frame.rcx = reg(libc::REG_RCX);
    frame.rdx = reg(libc::REG_RDX);
    frame.rsi = reg(libc::REG_RSI);
    frame.rdi = reg(libc::REG_RDI);
    frame.rbp = reg(libc::REG_RBP);
    frame.rsp = reg(libc::REG_RSP);
    frame.r8 = reg(libc::REG_R8);
    frame.r9 = reg(libc::REG_R9);
    frame.r10 = reg(libc::REG_R10);
    frame.r11 = reg(libc::REG_R11);
    frame.r12 = reg(libc::REG_R12);
    frame.r13 = reg(libc::REG_R13);
    frame.r14 = reg(libc::REG_R14);
    frame.r15 = reg(libc::REG_R15);
    frame.rip = rip;
    frame.rflags = reg(libc::REG_EFL);
    frame.trap = if signal == libc::SIGSYS { 0 } else { signal as u64 };
    frame.address = address;
    regs[libc::REG_RIP as usize] = hostkern_resume as *const () as i64;
    regs[libc::REG_RSP as usize] = frame.host_rsp as i64;
    regs[libc::REG_EFL as usize] &= !0x400;
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Frame, host_rsp) == 0 && offset_of!(Frame, rax) == 8);
    assert!(offset_of!(Frame, rdi) == 48 && offset_of!(Frame, rsp) == 64);
    assert!(offset_of!(Frame, r15) == 128 && offset_of!(Frame, rip) == 136);
    assert!(offset_of!(Frame, rflags) == 144);
};
