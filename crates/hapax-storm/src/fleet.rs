//! The workers as the parent sees them: started, killed, paused, started again.
//!
//! Invariant: when the fleet is dropped, none of its processes is left, not even
//! one that was paused.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};

use crate::ground::Ground;
use crate::plan::Orders;

const TICK: Duration = Duration::from_millis(2);

/// How often the parent struck.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strikes {
    pub kills: u64,
    pub pauses: u64,
    /// How often the server was killed, or the disk filled.
    pub outages: u64,
}

impl Strikes {
    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.kills += other.kills;
        self.pauses += other.pauses;
        self.outages += other.outages;
    }
}

enum Slot {
    Running { child: Child, paused_until: Option<Instant> },
    Down { until: Instant, corpse: Option<Child> },
    Done,
}

/// Some workers with the same orders.
pub struct Fleet {
    orders: Orders,
    slots: Vec<Slot>,
    lives: u64,
    pub strikes: Strikes,
    /// Workers that ended as none should.
    pub deaths: Vec<String>,
}

impl Fleet {
    /// A fleet, none of which runs yet.
    pub fn new(orders: Orders) -> Self {
        let slots = (0..orders.workers).map(|_| Slot::Down { until: Instant::now(), corpse: None }).collect();
        Self { orders, slots, lives: 0, strikes: Strikes::default(), deaths: Vec::new() }
    }

    /// Strikes at random until then, or until all workers are done; the ground fails meanwhile, and is whole in the end.
    pub fn rage(&mut self, until: Instant, ground: &mut Ground, rng: &mut StdRng) -> Result<()> {
        ground.begin(rng);
        let mut next = Instant::now() + Duration::from_millis(rng.random_range(0..400));
        while Instant::now() < until && !self.is_done() {
            self.tend(rng)?;
            ground.tend(rng)?;
            if Instant::now() >= next {
                self.strike(rng)?;
                next = Instant::now() + Duration::from_millis(rng.random_range(10..500));
            }
            std::thread::sleep(TICK);
        }
        self.resume()?;
        ground.calm()
    }

    /// Lets the workers come to their end; false if they do not, and have made no progress for this time.
    pub fn finish(&mut self, within: Duration, rng: &mut StdRng) -> Result<bool> {
        let (mut until, mut before) = (Instant::now() + within, 0);
        while !self.is_done() {
            let progress = std::fs::metadata(self.orders.progress()).map_or(0, |m| m.len());
            if progress > before {
                (until, before) = (Instant::now() + within, progress);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            self.tend(rng)?;
            std::thread::sleep(TICK);
        }
        Ok(true)
    }

    /// Tells the workers to stop, and waits for them; false if they do not within this time.
    pub fn drain(&mut self, within: Duration, rng: &mut StdRng) -> Result<bool> {
        for slot in &mut self.slots {
            match slot {
                Slot::Running { child, .. } => {
                    if let Some(stdin) = &mut child.stdin {
                        // It may have died by itself just now: `finish` sees that.
                        let _ = stdin.write_all(b"s");
                    }
                }
                Slot::Down { corpse, .. } => {
                    if let Some(mut corpse) = corpse.take() {
                        corpse.wait().context("cannot wait for a worker")?;
                    }
                    *slot = Slot::Done;
                }
                Slot::Done => {}
            }
        }
        self.finish(within, rng)
    }

    /// Kills all workers.
    pub fn kill_all(&mut self) -> Result<()> {
        // All at once first, so that none sees the others gone.
        for slot in &mut self.slots {
            if let Slot::Running { child, .. } = slot {
                child.kill().context("cannot kill a worker")?;
                self.strikes.kills += 1;
            }
        }
        for slot in &mut self.slots {
            if let Slot::Running { child, .. } | Slot::Down { corpse: Some(child), .. } = slot {
                child.wait().context("cannot wait for a worker")?;
            }
            *slot = Slot::Done;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Done))
    }

    /// Starts what is due, wakes what was paused long enough, and notes who ended.
    fn tend(&mut self, rng: &mut StdRng) -> Result<()> {
        for (n, slot) in self.slots.iter_mut().enumerate() {
            match slot {
                Slot::Running { child, paused_until } => {
                    if paused_until.is_some_and(|until| Instant::now() >= until) {
                        signal(child, Signal::CONT)?;
                        *paused_until = None;
                    }
                    if let Some(status) = child.try_wait()? {
                        let down = Instant::now() + Duration::from_millis(rng.random_range(0..100));
                        *slot = after_end(&mut self.deaths, n, status, down);
                    }
                }
                Slot::Down { until, corpse } if Instant::now() >= *until => {
                    if let Some(mut corpse) = corpse.take() {
                        corpse.wait().context("cannot wait for a worker")?;
                    }
                    self.lives += 1;
                    let child = start(Orders { worker: n, life: self.lives, ..self.orders.clone() })?;
                    *slot = Slot::Running { child, paused_until: None };
                }
                Slot::Down { .. } | Slot::Done => {}
            }
        }
        Ok(())
    }

    fn strike(&mut self, rng: &mut StdRng) -> Result<()> {
        let how = rng.random_range(0..100);
        let one = rng.random_range(0..self.slots.len());
        for (n, slot) in self.slots.iter_mut().enumerate() {
            let Slot::Running { child, paused_until } = slot else { continue };
            match how {
                // All at once: nobody is left who has the file open.
                0..8 => {}
                _ if n != one => continue,
                8..20 if paused_until.is_none() => {
                    signal(child, Signal::STOP)?;
                    *paused_until = Some(Instant::now() + Duration::from_millis(rng.random_range(5..1_500)));
                    self.strikes.pauses += 1;
                    continue;
                }
                _ => {}
            }
            child.kill().context("cannot kill a worker")?;
            let until = Instant::now() + Duration::from_millis(rng.random_range(0..150));
            if rng.random() {
                // A supervisor that is slow to look: a zombie until then.
                self.strikes.kills += 1;
                if let Slot::Running { child, .. } = std::mem::replace(slot, Slot::Done) {
                    *slot = Slot::Down { until, corpse: Some(child) };
                }
                continue;
            }
            let status = child.wait().context("cannot wait for a worker")?;
            *slot = if status.signal() == Some(Signal::KILL.as_raw()) {
                self.strikes.kills += 1;
                Slot::Down { until, corpse: None }
            } else {
                // It ended by itself an instant before.
                after_end(&mut self.deaths, n, status, until)
            };
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            if let Slot::Running { child, paused_until } = slot
                && paused_until.take().is_some()
            {
                signal(child, Signal::CONT)?;
            }
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Running { child, .. } | Slot::Down { corpse: Some(child), .. } = slot {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What becomes of a worker that ended by itself.
fn after_end(deaths: &mut Vec<String>, worker: usize, status: ExitStatus, until: Instant) -> Slot {
    if status.success() {
        return Slot::Done;
    }
    deaths.push(format!("worker {worker} ended by itself: {status} (its words are in workers.log)"));
    // It is started again, but not for ever.
    if deaths.len() < 10 { Slot::Down { until, corpse: None } } else { Slot::Done }
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill_process(Pid::from_child(child), signal).context("cannot signal a worker")
}

fn start(orders: Orders) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(orders.dir.join("workers.log"))?;
    Command::new(std::env::current_exe()?)
        .args(["worker", "--orders", &serde_json::to_string(&orders)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start a worker")
}
