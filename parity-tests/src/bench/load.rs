//! Who else uses the processor during a run: what it measures is worth less then.

/// The time that all processes have had of the processor, and that of the run's own, in ticks of the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    /// Of all cores, idle or not.
    total: f64,
    /// Idle, or waiting for a disk or another virtual machine.
    idle: f64,
    /// Of these processes and the children that have ended.
    own: f64,
}

impl Ticks {
    /// Those until now; `pids` are the living children.
    pub fn now(pids: &[u32]) -> Option<Ticks> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let cpu: Vec<f64> = text.lines().next()?.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let children = pids.iter().map(u32::to_string);
        let own = std::iter::once("self".to_owned()).chain(children).filter_map(|pid| of_process(&pid)).sum();
        // user nice system idle iowait irq softirq steal; what follows is contained in user.
        Some(Ticks { total: cpu.get(..8)?.iter().sum(), idle: cpu[3] + cpu[4] + cpu[7], own })
    }

    /// How many of the cores other processes took since `before`, on average.
    pub fn others_since(self, before: Ticks, cores: usize) -> f64 {
        let (total, idle, own) = (self.total - before.total, self.idle - before.idle, self.own - before.own);
        ((total - idle - own) / total.max(1.0) * cores as f64).max(0.0)
    }
}

/// User and system time of a process and of its children that have ended.
fn of_process(pid: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; the state follows as field 3, the times are the fields 14 to 17.
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_what_is_neither_idle_nor_own() {
        let before = Ticks { total: 100.0, idle: 50.0, own: 10.0 };
        let after = Ticks { total: 300.0, idle: 100.0, own: 60.0 };
        assert_eq!(after.others_since(before, 2), 1.0);
    }
}
