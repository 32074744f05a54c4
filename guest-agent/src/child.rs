//! The dead among this process's children, looked at before they are reaped: until then the kernel keeps what they were in.
//! Apart because the kernel's own form of this call is one of the two unsafe calls here.

use std::mem::MaybeUninit;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// A dead child: its number, and what wait(2) would say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) pid: u32,
    pub(crate) code: u32,
}

/// One dead child, left as it is.
#[expect(
    unsafe_code,
    reason = "the safe wrappers leave out the number of who died, or fail at a real-time signal"
)]
pub(crate) fn next_dead() -> Option<Dead> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a siginfo of our own; waitid(2) fills it in or leaves it as zeros, which is a siginfo too.
    let (answer, info) =
        unsafe { (libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options), info.assume_init()) };
    // SAFETY: of a siginfo that waitid filled in, or of zeros: both fields are plain numbers.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if answer != 0 || pid <= 0 {
        return None;
    }
    let status = status.cast_unsigned();
    let code = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Some(Dead { pid: pid.cast_unsigned(), code })
}

/// Lets go of a dead child: its number may be given to another process from now on.
pub(crate) fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    }
}
