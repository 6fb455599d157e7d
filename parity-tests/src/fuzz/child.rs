//! The process that makes calls: it says which one it begins and what came of it, so that its end is told by the last
//! call that it began.

use std::io::Write as _;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tch_losses::{Backend, LossError};

use super::call::Call;
use super::chance::{call, loss_of, losses};
use super::judge::judge;
use super::side::crate_itself;
use crate::check::BackendName;

/// What the parent process asks for.
#[derive(Debug, Args)]
pub struct ChildOptions {
    /// The first seed
    #[arg(long)]
    pub first: u64,
    /// How many seeds
    #[arg(long)]
    pub seeds: u64,
    /// Only these losses
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// The engines
    #[arg(long, value_enum, default_value_t)]
    pub engines: BackendName,
    /// Break the engines
    #[arg(long, value_enum)]
    pub sabotage: Option<Sabotage>,
}

/// How the engines are broken, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// Values are a thousandth too large
    Value,
    /// The process aborts
    Abort,
    /// The call does not end
    Hang,
}

/// What came of a call.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The loss.
    pub loss: String,
    /// Whether it was computed.
    pub accepted: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What is wrong: the class, and words.
    pub findings: Vec<(String, String)>,
    /// How many elements the arguments have.
    pub elements: usize,
}

/// Before this comes the seed of a call that begins.
pub const BEGINS: char = '>';

/// Makes the calls of a range of seeds.
pub fn run(options: &ChildOptions) -> Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    tch::set_num_threads(1);
    let losses = losses();
    let sabotage = options.sabotage;
    let runner = move |backend: Backend, call: &Call, arguments: &[Tensor], kind: Kind| {
        let broken = sabotage.filter(|_| backend == Backend::Auto);
        match broken {
            Some(Sabotage::Abort) => std::process::abort(),
            Some(Sabotage::Hang) => wait_for_ever(),
            _ => {}
        }
        let outputs = crate_itself(backend, call, arguments, kind)?;
        let larger = |tensor: &Tensor| Ok(tensor.f_mul(&Tensor::from(1.001_f32))?);
        if broken.is_some() { outputs.iter().map(larger).collect::<Result<_, LossError>>() } else { Ok(outputs) }
    };
    let mut out = std::io::stdout().lock();
    let mut pending = String::new();
    for seed in (0..options.seeds).map(|n| options.first.wrapping_add(n)) {
        let loss = loss_of(seed, &losses);
        if !is_chosen(loss, &options.only) {
            continue;
        }
        // One write for the end of a call and the beginning of the next.
        pending += &format!("{BEGINS}{seed}\n");
        out.write_all(pending.as_bytes())?;
        out.flush()?;
        let mut call = call(seed, &losses)?;
        call.engines = options.engines;
        let verdict = judge(&call, &runner);
        let findings = verdict.findings.into_iter();
        let report = Report {
            loss: call.loss.to_owned(),
            accepted: verdict.accepted,
            reason: verdict.reason,
            findings: findings.map(|finding| (finding.class.name().to_owned(), finding.detail)).collect(),
            elements: call.elements(),
        };
        pending = serde_json::to_string(&report)? + "\n";
    }
    out.write_all(pending.as_bytes())?;
    Ok(())
}

/// Whether a loss is one of those that are asked for: all of them where none is.
pub fn is_chosen(loss: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|name| name == loss)
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
