//! Which process an attempt belongs to, and whether that process still lives.
//!
//! A pid alone is reused, so a process is named by boot, pid namespace, pid and
//! start time. Invariant: a process is called gone only on proof (no such pid,
//! another start time, a zombie, an earlier boot of this host); in every other case
//! the lease decides.

use std::fs;

/// The length of a token.
const TOKEN: usize = 36;

/// Names a process for good; kept with each attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Hash of the boot id; 0 if unknown.
    pub(super) boot: u64,
    /// Hash of the host's name.
    machine: u64,
    /// The pid namespace; 0 if unknown.
    namespace: u64,
    /// When the process started, in ticks since boot; 0 if unknown.
    start: u64,
    pid: u32,
}

/// FNV-1a: stable over builds, since its values are stored.
pub(super) fn fnv(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

impl Process {
    /// This process.
    pub(super) fn this() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or(0, |id| fnv(&[id.trim().as_bytes()]));
        let namespace =
            fs::read_link("/proc/self/ns/pid").map_or(0, |link| fnv(&[link.as_os_str().as_encoded_bytes()]));
        let pid = std::process::id();
        let machine = fnv(&[gethostname::gethostname().as_encoded_bytes()]);
        Self { boot, machine, namespace, start: start_of(pid).map_or(0, |(start, _)| start), pid }
    }

    /// Its stored form.
    pub(super) fn token(&self) -> [u8; TOKEN] {
        let mut token = [0; TOKEN];
        let fields = [self.boot, self.machine, self.namespace, self.start];
        let bytes = fields.iter().flat_map(|f| f.to_le_bytes()).chain(self.pid.to_le_bytes());
        token.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        token
    }

    /// Reads the stored form.
    pub(super) fn from_token(token: &[u8]) -> Option<Self> {
        let mut words = token.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            u64::from_le_bytes(word)
        });
        if token.len() != TOKEN {
            return None;
        }
        Some(Self {
            boot: words.next()?,
            machine: words.next()?,
            namespace: words.next()?,
            start: words.next()?,
            pid: u32::try_from(words.next()?).ok()?,
        })
    }

    /// The token of an attempt that hangs on its lease alone: it says whose
    /// steady clock counts the lease, and no process that could be gone.
    pub(super) fn lease_token(&self) -> [u8; TOKEN] {
        Self { namespace: 0, start: 0, pid: 0, ..*self }.token()
    }

    /// Whether both were started since the same boot of one host, so that its
    /// steady clock serves both.
    pub(super) fn shares_clock(&self, other: &Self) -> bool {
        self.boot != 0 && self.boot == other.boot
    }

    /// Whether `other` is known to run no more.
    pub(super) fn knows_gone(&self, other: &Self) -> bool {
        // No process has the pid 0: such an attempt hangs on its lease alone.
        if self == other || other.pid == 0 || self.boot == 0 || other.boot == 0 {
            return false;
        }
        if self.boot != other.boot {
            return self.machine == other.machine;
        }
        if self.namespace == 0 || self.namespace != other.namespace || other.start == 0 {
            return false;
        }
        match start_of(other.pid) {
            Some((start, dead)) => dead || start != other.start,
            // Also when /proc hides other users' processes: ask the kernel.
            None => no_such(other.pid),
        }
    }
}

fn no_such(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// When a process started, and whether it is a zombie.
fn start_of(pid: u32) -> Option<(u64, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((start, matches!(state, "Z" | "X" | "x")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back() {
        let me = Process::this();
        assert_eq!(Process::from_token(&me.token()), Some(me));
        assert_eq!(Process::from_token(b"short"), None);
    }

    #[test]
    fn a_process_is_gone_only_on_proof() {
        let me = Process { boot: 1, machine: 2, namespace: Process::this().namespace, start: 7, pid: 1 };
        assert!(!me.knows_gone(&me));
        assert!(me.knows_gone(&Process { start: 8, ..me }), "pid 1 did not start at tick 8");
        assert!(!me.knows_gone(&Process { namespace: 99, start: 8, ..me }), "another container");
        assert!(!me.knows_gone(&Process { boot: 5, machine: 6, ..me }), "another host");
        assert!(me.knows_gone(&Process { boot: 5, ..me }), "this host before it was restarted");
        assert!(!me.knows_gone(&Process { boot: 0, ..me }), "nothing known");
        let lease = Process::from_token(&me.lease_token()).unwrap();
        assert!(me.shares_clock(&lease) && !me.knows_gone(&lease), "it hangs on its lease alone");
        let before_the_boot = Process { boot: 5, ..lease };
        assert!(!me.knows_gone(&before_the_boot), "whoever runs it may be elsewhere");
    }

    #[test]
    fn a_child_is_gone_once_it_is_a_zombie() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = Process::this();
        let (start, dead) = start_of(child.id()).unwrap();
        assert!(!dead);
        let other = Process { pid: child.id(), start, ..me };
        assert!(!me.knows_gone(&other));
        child.kill().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(me.knows_gone(&other), "a zombie runs no more");
        child.wait().unwrap();
        assert!(me.knows_gone(&other));
    }
}
