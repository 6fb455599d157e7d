use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ffi::Processes;
use super::purpose::Purpose;
use super::record::{Operation, Request};
use super::rendezvous::{Failure, NO_ANSWER, Place, SIGNS, Signs, key, within};
use crate::LossError;

/// That of torch.distributed.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A group of processes, on one machine or many, that compute a loss together: PyTorch's process group, by its Gloo.
///
/// It is `torch.distributed`'s own engine, which is part of libtorch: ranks meet at the store of rank 0 and connect to
/// each other. A copy of a group is the same group.
///
/// Every method whose name begins with `f_` is a *collective*: all ranks call it, in the same order. Before each one,
/// the ranks tell each other what they are about to do; where they disagree, all of them get
/// [`LossError::Ranks`], and the group can be used further. A rank that does not come, or that dies, is
/// [`LossError::Group`] on all others within the timeout; it names the ranks without a sign of life. The group is then
/// broken, and every further call is that error.
///
/// ```
/// use std::time::Duration;
///
/// use tch::Tensor;
/// use tch_losses::distributed::{Group, Reduce};
///
/// # let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
/// # let address = format!("127.0.0.1:{free}");
/// // The whole world is this process; others would have the ranks 1, 2, …
/// let group = Group::new(&address, 0, 1, Duration::from_secs(30))?;
/// let sum = group.f_all_reduce(&Tensor::from_slice(&[1.0, 2.0]), Reduce::Sum)?;
/// assert_eq!(Vec::<f64>::try_from(sum)?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[doc(alias = "ProcessGroup")]
#[doc(alias = "init_process_group")]
pub struct Group(Arc<Shared>, Purpose);

#[derive(Debug)]
struct Shared {
    place: Place,
    /// That of the group among those of the store.
    number: u64,
    sent: AtomicU64,
    state: Mutex<State>,
}

/// What one thread at a time has.
#[derive(Debug)]
pub(super) struct State {
    pub(super) processes: Processes,
    /// How many calls there were.
    pub(super) calls: u64,
    /// Why the group is broken.
    broken: Option<String>,
    silent: Vec<usize>,
}

impl Group {
    /// The group that torchrun, or another launcher, describes by the environment variables `RANK`, `WORLD_SIZE`,
    /// `MASTER_ADDR` and `MASTER_PORT`, with PyTorch's timeout of 30 minutes.
    ///
    /// Python ranks that call `torch.distributed.init_process_group("gloo")` may belong to the same group; the book says
    /// what they have to do before each collective.
    ///
    /// # Errors
    /// [`LossError::Group`] where a variable is missing or no number, and those of [`new`](Self::new).
    pub fn from_env() -> Result<Self, LossError> {
        Self::from_env_within(DEFAULT_TIMEOUT)
    }

    /// [`from_env`](Self::from_env) with a timeout of your own.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_env_within(timeout: Duration) -> Result<Self, LossError> {
        let [rank, world, port] = [f_number("RANK")?, f_number("WORLD_SIZE")?, f_number("MASTER_PORT")?];
        let address = format!("{}:{port}", f_variable("MASTER_ADDR")?);
        // torchrun's agent holds the store itself; no rank does.
        let agent = std::env::var("TORCHELASTIC_USE_AGENT_STORE").is_ok_and(|value| value == "True");
        Self::f_new(&address, (rank, world), timeout, !agent)
    }

    /// The group of `world` processes of which this one is number `rank`. `address` is `host:port` of rank 0, where the
    /// others meet it; the port has to be free there. `timeout` is how long a rank waits for the others, here and in
    /// each call.
    ///
    /// # Errors
    /// [`LossError::Option`] for an address without a port, a rank that is not below `world`, or a timeout of nothing;
    /// [`LossError::Group`] where the port is taken, or where the others do not come in time. All ranks may try once more
    /// then.
    pub fn new(address: &str, rank: usize, world: usize, timeout: Duration) -> Result<Self, LossError> {
        Self::f_new(address, (rank, world), timeout, true)
    }

    fn f_new(address: &str, ranks: (usize, usize), timeout: Duration, of_rank_0: bool) -> Result<Self, LossError> {
        let place = Place::f_new(address, ranks, of_rank_0)?;
        if timeout < Duration::from_millis(1) {
            let (expected, actual) = ("at least a millisecond".into(), format!("{timeout:?}"));
            return Err(LossError::Option { option: "timeout", expected, actual });
        }
        let met = place.f_meet(timeout);
        let failed = |failure: Failure| f_failure("Group::new", place.world, &failure.message, failure.silent);
        let (processes, number) = met.map_err(failed)?;
        let state = Mutex::new(State { processes, calls: 0, broken: None, silent: vec![] });
        Ok(Self(Arc::new(Shared { place, number, sent: AtomicU64::new(0), state }), Purpose::default()))
    }

    /// The number of this process, from 0 on.
    pub fn rank(&self) -> usize {
        self.0.place.rank
    }

    /// The number of processes.
    pub fn world_size(&self) -> usize {
        self.0.place.world
    }

    /// The number of processes, for arithmetic.
    pub(super) fn ranks(&self) -> f64 {
        self.0.place.world as f64
    }

    /// The same group for another purpose.
    pub(super) fn with_purpose(&self, purpose: Purpose) -> Self {
        Self(Arc::clone(&self.0), purpose)
    }

    /// The loss that the calls are for.
    pub(super) fn purpose(&self) -> &Purpose {
        &self.1
    }

    /// The bytes that were sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.0.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The group for one collective at a time.
    pub(super) fn f_lock(&self, operation: Operation) -> Result<MutexGuard<'_, State>, LossError> {
        // A panic of another thread left nothing half-done: what it called has ended.
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.broken {
            Some(message) => {
                let message = format!("the group is broken since an earlier call: {message}");
                Err(f_failure(operation.name(), self.0.place.world, &message, state.silent.clone()))
            }
            None => Ok(state),
        }
    }

    /// The error of a collective that failed. Closes the group, so that the other ranks need not wait for this one.
    pub(super) fn broken(&self, state: &mut State, operation: Operation, message: &str) -> LossError {
        // What it says is of no use: the group is given up.
        let _ = state.processes.f_close();
        let (calls, number, place) = (state.calls, self.0.number, self.0.place.clone());
        let processes = std::mem::replace(&mut state.processes, Processes::closed());
        let asked = within(3 * SIGNS, move || {
            let there = |rank: usize| key(number, &format!("stuck/{calls}/{rank}"));
            let _ = processes.f_sign(&there(place.rank));
            let signs = Signs { there: &there, done: &|rank| key(number, &format!("done/{calls}/{rank}")) };
            (place.silent_ranks(&processes, number, &signs), processes)
        });
        let mut message = first_line(message);
        let silent = match asked {
            Some((silent, processes)) => {
                // The store of this rank stays for the others.
                state.processes = processes;
                silent
            }
            None => {
                message += &format!("; {NO_ANSWER}");
                self.0.place.host_of_store().into_iter().collect()
            }
        };
        state.broken = Some(message.clone());
        state.silent.clone_from(&silent);
        f_failure(operation.name(), self.0.place.world, &message, silent)
    }

    /// Passes `checked` on. Where it is an error, the other ranks are told that this rank does not come: their next
    /// collective is [`LossError::Ranks`], instead of a wait until the timeout.
    ///
    /// # Errors
    /// That of `checked`.
    pub fn f_or_refuse<T>(&self, checked: Result<T, LossError>) -> Result<T, LossError> {
        if checked.is_err() && self.0.place.world > 1 {
            // The error of this rank says more than that ranks disagree.
            let _ = self.f_collective(&Request::bare(Operation::Refuse), |_, _| Ok(()));
        }
        checked
    }
}

fn f_failure(operation: &'static str, world: usize, message: &str, silent: Vec<usize>) -> LossError {
    let mut message = format!("{} ({world} ranks)", first_line(message));
    if !silent.is_empty() {
        let plural = if silent.len() == 1 { "" } else { "s" };
        let ranks: Vec<String> = silent.iter().map(usize::to_string).collect();
        message += &format!("; no sign of rank{plural} {}", ranks.join(", "));
    }
    LossError::Group { operation, message, silent }
}

/// The first line, without the place in libtorch's sources that it may begin with, and without Gloo's advice.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    let line = line.split(". This is typically caused by").next().unwrap_or_default();
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((place, rest)) if place.contains(".cc:") || place.contains(".cpp:") => rest.to_owned(),
        _ => line.to_owned(),
    }
}

fn f_variable(name: &'static str) -> Result<String, LossError> {
    std::env::var(name).map_err(|_| LossError::Group {
        operation: "Group::from_env",
        message: format!("the environment variable {name} is not set; torchrun sets it"),
        silent: vec![],
    })
}

fn f_number(name: &'static str) -> Result<usize, LossError> {
    let value = f_variable(name)?;
    value.parse().map_err(|_| LossError::Group {
        operation: "Group::from_env",
        message: format!("the environment variable {name} is {value:?}, expected a number"),
        silent: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: &str, rank: usize, world: usize, timeout: u64) -> String {
        Group::new(address, rank, world, Duration::from_millis(timeout)).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_are_named() {
        for address in ["localhost", ":7", "localhost:0", "localhost:seven"] {
            let expected = format!("option address is {address:?}, expected host:port with a port from 1 to 65535");
            assert_eq!(message(address, 0, 1, 9), expected);
        }
        let rank = "option rank is 2, expected a number below 2, the number of ranks";
        assert_eq!(message("localhost:7", 2, 2, 9), rank);
        assert_eq!(message("localhost:7", 0, 0, 9), "option world is 0, expected a number of ranks >= 1");
        assert_eq!(message("localhost:7", 0, 1, 0), "option timeout is 0ns, expected at least a millisecond");
    }

    #[test]
    fn places_in_sources_are_left_out() {
        let text = "[/pytorch/gloo/pair.cc:534] Connection closed. This is typically caused by a crash. GLHF!\nmore";
        assert_eq!(first_line(text), "Connection closed");
        assert_eq!(first_line("[127.0.0.1] is taken"), "[127.0.0.1] is taken");
    }
}
