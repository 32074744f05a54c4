//! Zombies: ended children that are not reaped yet. Until then the kernel keeps their cgroup. In a
//! file of its own because the raw waitid call is one of the agent's two unsafe calls.

use std::mem::MaybeUninit;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// An ended child: its pid, and its status as wait(2) encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zombie {
    pub(crate) pid: u32,
    pub(crate) code: u32,
}

/// Returns one zombie without reaping it.
#[expect(unsafe_code, reason = "the safe wrappers omit the pid, or fail at a real-time signal")]
pub(crate) fn next_zombie() -> Option<Zombie> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a local siginfo; waitid(2) fills it in or leaves it zeroed, which
    // is a valid siginfo too.
    let (answer, info) =
        unsafe { (libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options), info.assume_init()) };
    // SAFETY: the siginfo is filled in by waitid or zeroed: both fields are plain numbers.
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
    Some(Zombie { pid: pid.cast_unsigned(), code })
}

/// Reaps a zombie: its pid may be reused from now on.
pub(crate) fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    }
}
