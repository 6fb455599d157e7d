//! How ranks find each other, and who of them has gone: by the store of rank 0, or of torchrun's agent.

use std::net::{Ipv6Addr, TcpStream, ToSocketAddrs};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::ffi::Processes;
use crate::LossError;

/// How long a rank waits for signs of the others after a failure, so that it can name those without one.
pub(super) const SIGNS: Duration = Duration::from_secs(2);
pub(super) const NO_ANSWER: &str = "the store of rank 0 does not answer";
const PAUSE: Duration = Duration::from_millis(20);
/// libtorch counts nanoseconds, of which 64 bits hold three centuries.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why ranks have not met.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    /// The ranks that gave no sign.
    pub(super) silent: Vec<usize>,
    /// Whether the store went away: rank 0 may have given up an older group, and be back at once.
    lost: bool,
}

/// Where ranks meet, and which of them this one is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    host: String,
    port: u16,
    pub(super) rank: usize,
    pub(super) world: usize,
    /// Whether rank 0 has the store, and no agent.
    of_rank_0: bool,
}

impl Place {
    pub(super) fn f_new(address: &str, (rank, world): (usize, usize), of_rank_0: bool) -> Result<Self, LossError> {
        let option = |option, actual: String, expected: String| LossError::Option { option, expected, actual };
        let Some((host, port)) = host_and_port(address) else {
            let expected = "host:port with a port from 1 to 65535";
            return Err(option("address", format!("{address:?}"), expected.into()));
        };
        if world == 0 {
            return Err(option("world", "0".into(), "a number of ranks >= 1".into()));
        }
        if rank >= world {
            return Err(option("rank", rank.to_string(), format!("a number below {world}, the number of ranks")));
        }
        Ok(Self { host: host.into(), port, rank, world, of_rank_0 })
    }

    /// The rank whose process has the store, if that is another one.
    pub(super) fn host_of_store(&self) -> Option<usize> {
        (self.of_rank_0 && self.rank != 0).then_some(0)
    }

    /// The group of these ranks, and its number.
    pub(super) fn f_meet(&self, timeout: Duration) -> Result<(Processes, u64), Failure> {
        let timeout = timeout.min(LONGEST);
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match self.f_meet_once(timeout, left) {
                Err(failure) if failure.lost && self.host_of_store().is_some() && Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                }
                met => return met,
            }
        }
    }

    /// The same, without another try. `timeout` is that of the group, `left` is for its beginning.
    fn f_meet_once(&self, timeout: Duration, left: Duration) -> Result<(Processes, u64), Failure> {
        let failure = |message| Failure { message, silent: self.host_of_store().into_iter().collect(), lost: false };
        let at = |message| failure(format!("store of rank 0 at {}:{}: {message}", self.host, self.port));
        let processes = self.f_connect(left).map_err(at)?;
        // Each waits for the store, and then for the other ranks.
        let place = self.clone();
        let joined = within(2 * left + 3 * SIGNS, move || place.f_come_together(processes, timeout, left));
        joined.unwrap_or_else(|| Err(failure(NO_ANSWER.to_owned())))
    }

    /// Connects to the store, or is it.
    fn f_connect(&self, timeout: Duration) -> Result<Processes, String> {
        let (place, serves) = (self.clone(), self.of_rank_0 && self.rank == 0);
        let connect = move || Processes::f_connect((&place.host, place.port), serves, place.world, timeout);
        let message = match within(timeout + SIGNS, connect) {
            Some(Ok(processes)) => return Ok(processes),
            Some(Err(message)) if !message.contains("timed out") => return Err(message),
            Some(Err(message)) => message.lines().next().unwrap_or_default().trim_end_matches('.').to_owned(),
            None => format!("no answer within {timeout:.1?}"),
        };
        let place = self.clone();
        let seen = within(SIGNS, move || place.what_is_there()).unwrap_or("the host is looked for in vain");
        Err(format!("{message}; {seen}"))
    }

    /// What this machine can tell of a store that it does not reach.
    fn what_is_there(&self) -> &'static str {
        let Ok(addresses) = (self.host.as_str(), self.port).to_socket_addrs() else { return "no such host is known" };
        let answers = |address| TcpStream::connect_timeout(&address, SIGNS / 4).is_ok();
        if addresses.into_iter().any(answers) { "is another program at this port?" } else { "nothing answers there" }
    }

    /// Connects to all other ranks by the store.
    fn f_come_together(
        &self,
        processes: Processes,
        timeout: Duration,
        left: Duration,
    ) -> Result<(Processes, u64), Failure> {
        let lost = |processes: &Processes| processes.f_has_sign("tch_losses").is_err();
        let number = self.f_claim_number(&processes).map_err(|message| Failure {
            message,
            silent: vec![],
            lost: lost(&processes),
        })?;
        let Err(message) = processes.f_join(&number.to_string(), self.rank, self.world, timeout) else {
            return Ok((processes, number));
        };
        let lost = lost(&processes);
        let signs =
            Signs { there: &|rank| key_of_rank(number, rank), done: &|rank| key(number, &format!("left/{rank}")) };
        let silent = self.silent_ranks(&processes, number, &signs);
        // What c10d says then are keys of the store.
        let waited = message.starts_with("wait timeout");
        let message = if waited { format!("not all ranks came within {left:.1?}") } else { message };
        Err(Failure { message, silent, lost })
    }

    /// Claims this rank's place in the first group of the store that is not broken and that this process is not in. So
    /// the groups of a process are told apart by their order, as those of torch.distributed, the first of which is "0",
    /// and ranks that try once more meet.
    ///
    /// Another process of the same rank, or one that counts another number of ranks, would have c10d wait or read what
    /// is not meant for it.
    fn f_claim_number(&self, processes: &Processes) -> Result<u64, String> {
        let Self { rank, world, .. } = *self;
        let own = format!("{}{}", *PROCESS, CLAIMS.fetch_add(1, Ordering::Relaxed));
        let mut number = 0;
        loop {
            let of_rank = key_of_rank(number, rank);
            let taken = processes.f_has_sign(&of_rank)?;
            if !processes.f_has_sign(&key_of_broken(number))? {
                let of_first = match taken {
                    true => world.to_string(),
                    false => processes.f_claim(&key(number, "world"), &world.to_string())?,
                };
                if of_first != world.to_string() {
                    return Err(format!("rank {rank} is one of {world} ranks, and another rank one of {of_first}"));
                }
                let claimed = processes.f_claim(&of_rank, &own)?;
                if claimed == own {
                    return Ok(number);
                }
                if !claimed.starts_with(&*PROCESS) {
                    return Err(format!("another process is rank {rank}, too"));
                }
            }
            number += 1;
        }
    }

    /// The ranks that are not there within [`SIGNS`]. Where the store is gone nobody can be asked; what had it has given
    /// no sign then.
    pub(super) fn silent_ranks(&self, processes: &Processes, number: u64, signs: &Signs) -> Vec<usize> {
        // Whoever comes now finds another group.
        let _ = processes.f_sign(&key_of_broken(number));
        let others: Vec<usize> = (0..self.world).filter(|&rank| rank != self.rank).collect();
        let lacks = |ranks: &[usize], sign: &dyn Fn(usize) -> String| {
            let mut lacking = vec![];
            for &rank in ranks {
                if !processes.f_has_sign(&sign(rank))? {
                    lacking.push(rank);
                }
            }
            Ok::<_, String>(lacking)
        };
        // Where the store goes away, what was seen last counts.
        let wait = |ranks: &[usize], sign: &dyn Fn(usize) -> String| {
            let (end, mut lacking) = (Instant::now() + SIGNS, self.host_of_store().into_iter().collect());
            while let Ok(now) = lacks(ranks, sign) {
                lacking = now;
                if lacking.is_empty() || Instant::now() > end {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
            lacking
        };
        let silent = wait(&others, signs.there);
        // The sign of this rank is of no use where the store is gone.
        let _ = processes.f_sign(&(signs.done)(self.rank));
        if self.rank == 0 {
            // The store may be that of this process, and the others ask it, too.
            let present: Vec<usize> = others.into_iter().filter(|rank| !silent.contains(rank)).collect();
            wait(&present, signs.done);
        }
        silent
    }
}

/// The names of the signs of ranks: that one is there, and that it has seen who else is.
pub(super) struct Signs<'a> {
    pub(super) there: &'a dyn Fn(usize) -> String,
    pub(super) done: &'a dyn Fn(usize) -> String,
}

/// Begins each claim of this process.
static PROCESS: LazyLock<String> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}, {now:?}, ", std::process::id())
});
static CLAIMS: AtomicU64 = AtomicU64::new(0);

/// The name of what is told of the group of this number.
pub(super) fn key(number: u64, what: &str) -> String {
    format!("tch_losses/{number}/{what}")
}

fn key_of_rank(number: u64, rank: usize) -> String {
    key(number, &format!("come/{rank}"))
}

fn key_of_broken(number: u64) -> String {
    key(number, "broken")
}

/// The parts of an address. A host with colons is one of IPv6.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.split('%').next().unwrap_or_default();
    let valid = !host.is_empty() && port > 0 && (!host.contains(':') || name.parse::<Ipv6Addr>().is_ok());
    valid.then_some((host, port))
}

/// What `work` returns, on a thread of its own, unless that takes longer. libtorch waits without an end for an answer of
/// the store: of a program that is none, or of a machine that has vanished. In that case the thread is left alone.
pub(super) fn within<T: Send + 'static>(longest: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (send, receive) = std::sync::mpsc::channel();
    let call = move || {
        // Nobody receives it where it comes too late.
        let _ = send.send(work());
    };
    // Without a thread there is no answer, either.
    std::thread::Builder::new().name("tch-losses store".into()).spawn(call).ok()?;
    receive.recv_timeout(longest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (address, parts) in [
            ("localhost:7", Some(("localhost", 7))),
            ("[::1]:29500", Some(("::1", 29500))),
            // As MASTER_ADDR and MASTER_PORT put together.
            ("fe80::1%eth0:29500", Some(("fe80::1%eth0", 29500))),
            ("::1", None),
            ("127.0.0.1:29500:29500", None),
            ("host:65536", None),
        ] {
            assert_eq!(host_and_port(address), parts, "{address}");
        }
    }
}
