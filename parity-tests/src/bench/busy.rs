//! Processes that keep cores busy: a data loader or a compiler beside a training program.

use std::hint::black_box;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Such processes, each this program once more. They end with this value, and with this program.
#[derive(Debug, Default)]
pub struct Busy {
    processes: Vec<Child>,
}

const WORK: u8 = b'w';
const REST: u8 = b'r';

impl Busy {
    /// Starts `count` processes, which rest at first.
    pub fn start(count: usize) -> Result<Busy> {
        let mut busy = Busy::default();
        for _ in 0..count {
            let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
            command.args(["bench", "--keep-busy"]).stdin(Stdio::piped()).stdout(Stdio::null());
            busy.processes.push(command.spawn().context("cannot run this program again")?);
        }
        Ok(busy)
    }

    /// Makes them work, or rest.
    pub fn set(&mut self, work: bool) -> Result<()> {
        // Until all of them are where they should be.
        const SETTLED: Duration = Duration::from_millis(20);
        for process in &mut self.processes {
            let pipe = process.stdin.as_mut().context("a busy process has no input")?;
            pipe.write_all(&[if work { WORK } else { REST }]).context("a busy process has ended")?;
        }
        if !self.processes.is_empty() {
            thread::sleep(SETTLED);
        }
        Ok(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill().and_then(|()| process.wait());
        }
    }
}

/// What such a process does: it works or rests as its input says, and ends with that.
pub fn keep_busy() {
    static WORKS: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        let mut letter = [REST];
        while std::io::stdin().read_exact(&mut letter).is_ok() {
            WORKS.store(letter == [WORK], Ordering::Relaxed);
        }
        std::process::exit(0);
    });
    loop {
        match WORKS.load(Ordering::Relaxed) {
            true => work_for(Duration::from_millis(1)),
            false => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn work_for(duration: Duration) {
    let start = Instant::now();
    let mut number = 1_u64;
    while start.elapsed() < duration {
        for _ in 0..1000 {
            number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}
