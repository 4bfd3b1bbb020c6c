//! What a process costs: CPU time and memory, read from `/proc` (proc(5)); and which cores it may use.
//!
//! Linux only. Readings cost this process some microseconds and the measured one nothing.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Threads and children of one process that are read; more are not a server that this can measure.
const MANY: usize = 4096;

/// The CPU time that a process has used, with the scheduler's resolution.
///
/// The kernel's sum for a process counts in ticks of 10 ms. This adds up `/proc/PID/task/*/schedstat`, in
/// nanoseconds, and keeps the last reading of threads that have ended. What a thread ran between its last reading
/// and its end is missed, unless the kernel's sum says more: the larger one is taken.
#[derive(Debug)]
pub struct CpuClock {
    pid: u32,
    threads: HashMap<u32, Duration>,
    last: Duration,
}

impl CpuClock {
    /// The clock of a process of this machine.
    ///
    /// # Errors
    /// When there is no such process, or this is not Linux.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let mut clock = Self { pid, threads: HashMap::new(), last: Duration::ZERO };
        clock.read()?;
        Ok(clock)
    }

    /// User and system time together since the process started. Never falls.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn read(&mut self) -> anyhow::Result<Duration> {
        let threads = numbers(&format!("/proc/{}/task", self.pid))?;
        for thread in threads {
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(format!("/proc/{}/task/{thread}/schedstat", self.pid)) {
                let first = text.split_whitespace().next().context("schedstat is empty")?;
                self.threads.insert(thread, Duration::from_nanos(first.parse().context("schedstat is no number")?));
            }
        }
        let sum: Duration = self.threads.values().sum();
        self.last = self.last.max(sum).max(ticks(self.pid)?);
        Ok(self.last)
    }
}

/// Which field of `/proc/PID/stat` is `utime`, counted from behind the name, which may hold anything.
const UTIME: usize = 11;

fn ticks(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let (_, fields) = text.rsplit_once(") ").context("stat has no name")?;
    let times = fields.split(' ').skip(UTIME).take(2);
    let ticks: u64 = times.map(|field| field.parse::<u64>().context("stat has no times")).sum::<Result<_, _>>()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_micros(ticks.saturating_mul(1_000_000) / per_second))
}

/// Resident memory of a process in bytes: `Rss` of `smaps_rollup`, which is exact, else `VmRSS` of `status`, which
/// is off by some pages for each thread.
///
/// # Errors
/// When the process has ended, or this is not Linux.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    if let Some(bytes) = exact.and_then(|text| kilobytes(&text, "Rss:")) {
        return Ok(bytes);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    kilobytes(&status, "VmRSS:").context("status has no VmRSS")
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A process and all that it has started, itself first: some servers have a master and workers.
///
/// # Errors
/// When the process has ended, or has more than 4,096 threads or descendants.
pub fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        for thread in numbers(&format!("/proc/{parent}/task")).unwrap_or_default() {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{thread}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        ensure!(found.len() <= MANY, "process {pid} has more than {MANY} descendants");
        at += 1;
    }
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is gone");
    Ok(found)
}

/// The entries of a directory whose names are numbers.
fn numbers(dir: &str) -> anyhow::Result<Vec<u32>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read `{dir}`"))?;
    let names = entries.take(MANY + 1).filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok());
    let found: Vec<u32> = names.collect();
    ensure!(found.len() <= MANY, "`{dir}` has more than {MANY} entries");
    Ok(found)
}

/// What a server has used: CPU time and memory of a process and all that it has started.
#[derive(Debug)]
pub struct Meter {
    clocks: Vec<CpuClock>,
}

impl Meter {
    /// Measures a process and those that it has started by now.
    ///
    /// # Errors
    /// When there is no such process, or this is not Linux.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        Self::of_all(&[pid])
    }

    /// Measures several processes and those that each has started by now.
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn of_all(pids: &[u32]) -> anyhow::Result<Self> {
        let mut clocks = Vec::new();
        for pid in pids {
            for member in family(*pid)? {
                clocks.push(CpuClock::of(member)?);
            }
        }
        Ok(Self { clocks })
    }

    /// CPU time of all of them together.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn cpu(&mut self) -> anyhow::Result<Duration> {
        self.clocks.iter_mut().map(CpuClock::read).sum()
    }

    /// Resident memory of all of them together, in bytes. Pages that they share count for each.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.clocks.iter().map(|clock| resident_bytes(clock.pid)).sum()
    }
}

/// How the cores are shared between a server and its load: the server has the first one, the load the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cores {
    cores: usize,
}

impl Cores {
    /// The plan for this machine; `None` on one core, where there is nothing to share.
    #[must_use]
    pub fn plan() -> Option<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores > 1).then_some(Self { cores })
    }

    /// Keeps the calling thread, and the threads that it starts from now on, off the server's core. To be called
    /// before a runtime is built.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub fn take_load(self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.set(1..self.cores))?)
    }

    /// Starts a process on the server's core: it inherits the place of the thread that starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server(self, command: &mut Command) -> io::Result<Child> {
        let server = self.set(0..1);
        std::thread::scope(|scope| {
            let started = scope.spawn(move || {
                sched_setaffinity(None, &server)?;
                command.spawn()
            });
            started.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
        })
    }

    /// The cores of this machine that this process may use, by their place in that list: a container may have been
    /// given cores 6 and 7.
    fn set(self, places: std::ops::Range<usize>) -> CpuSet {
        let allowed = allowed();
        let mut set = CpuSet::new();
        for core in allowed.iter().skip(places.start).take(places.len()) {
            set.set(*core);
        }
        set
    }
}

/// The cores that this process was given when it first asked.
fn allowed() -> &'static [usize] {
    static ALLOWED: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    })
}

/// Sends SIGTERM to a child of this process.
///
/// # Errors
/// When it has ended.
pub fn terminate(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(kill_process(pid, Signal::TERM)?)
}

/// Raises the number of files that this process, and those that it starts, may open to what is allowed without
/// privileges. Returns the number.
#[must_use]
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum.unwrap_or(u64::MAX),
        Err(_) => now.current.unwrap_or(u64::MAX),
    }
}

/// A child that is killed, and waited for, when this is dropped.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        if let Err(err) = killed {
            drop(writeln!(io::stderr(), "cannot end process {}: {err}", self.0.id()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_clock_counts_what_this_process_computes_in_threads_that_have_ended_too() {
        let mut clock = CpuClock::of(std::process::id()).unwrap();
        let before = clock.read().unwrap();
        let burn = Duration::from_millis(60);
        let burner = std::thread::spawn(move || {
            let mut own = CpuClock::of(std::process::id()).unwrap();
            let start = own.read().unwrap();
            while own.read().unwrap() - start < burn {}
        });
        while !burner.is_finished() {
            clock.read().unwrap();
        }
        burner.join().unwrap();
        let after = clock.read().unwrap();
        assert!(after - before >= burn, "{:?}", after - before);
        assert!(clock.read().unwrap() >= after);
    }

    /// A shell and its child: other tests of this process start and end children of theirs meanwhile.
    #[test]
    fn memory_and_children_of_a_process_are_found() {
        let piped = std::process::Stdio::piped;
        let shell = Command::new("sh").args(["-c", "cat; :"]).stdin(piped()).stdout(piped()).spawn();
        let mut shell = Owned(shell.unwrap());
        shell.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        // Whoever gives it back is the child.
        shell.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = family(shell.0.id()).unwrap();
        assert_eq!((found.len(), found[0]), (2, shell.0.id()), "{found:?}");
        let both = Meter::of(shell.0.id()).unwrap();
        assert_eq!(both.clocks.len(), 2);
        let each = found.iter().map(|pid| resident_bytes(*pid).unwrap());
        assert_eq!(both.resident_bytes().unwrap(), each.sum::<u64>());
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let err = CpuClock::of(child.id()).unwrap_err();
        assert!(err.to_string().contains("/proc/"), "{err:#}");
        assert!(resident_bytes(child.id()).unwrap_err().to_string().contains("is gone"));
    }

    #[test]
    fn kilobytes_are_read_from_their_line() {
        assert_eq!(kilobytes("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(kilobytes("Name:\tx\n", "VmRSS:"), None);
    }
}
