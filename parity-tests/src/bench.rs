//! What a call of the crate costs over the bare tch operation, on tensors so small that little else counts.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use tch::{Device, Kind, Reduction, Tensor};
use tch_losses::{BceWithLogitsLoss, CrossEntropyLoss, HuberLoss, KlDivLoss, Loss, MseLoss, NllLoss, SmoothL1Loss};

/// How long to measure.
#[derive(Debug, Args)]
pub struct BenchOptions {
    /// Rounds; in each the two sides alternate
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Calls per side and round
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
}

/// A loss beside the tch operation that it ends in.
struct Pair {
    name: &'static str,
    loss: Box<dyn Loss>,
    bare: fn(&Tensor, &Tensor) -> Tensor,
    input: Tensor,
    target: Tensor,
}

/// Measures and prints the table.
pub fn run(options: &BenchOptions) -> Result<()> {
    tch::set_num_threads(1);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["loss (8 elements, forward)", "bare tch, µs", "this crate, µs", "added, µs"]);
    for pair in pairs()? {
        let (bare, ours) = measure(&pair, options);
        let cells = [bare, ours, ours - bare].map(|seconds| format!("{:.2}", seconds * 1e6));
        table.add_row(std::iter::once(pair.name.to_owned()).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}\n\nmedian over {} rounds of {} calls, sides alternating", options.rounds, options.calls);
    Ok(())
}

fn pairs() -> Result<Vec<Pair>> {
    let real = || Tensor::f_rand([2, 4], (Kind::Float, Device::Cpu));
    let pair = |name, loss, bare, input, target| Pair { name, loss, bare, input, target };
    let classes = || Tensor::f_from_slice(&[1_i64, 3]);
    Ok(vec![
        pair("MseLoss", Box::new(MseLoss::new()), |x, y| x.mse_loss(y, Reduction::Mean), real()?, real()?),
        pair(
            "SmoothL1Loss",
            Box::new(SmoothL1Loss::new()),
            |x, y| x.smooth_l1_loss(y, Reduction::Mean, 1.0),
            real()?,
            real()?,
        ),
        pair("HuberLoss", Box::new(HuberLoss::new()), |x, y| x.huber_loss(y, Reduction::Mean, 1.0), real()?, real()?),
        pair("KlDivLoss", Box::new(KlDivLoss::new()), |x, y| x.kl_div(y, Reduction::Mean, false), real()?, real()?),
        pair(
            "BceWithLogitsLoss",
            Box::new(BceWithLogitsLoss::new()),
            |x, y| x.binary_cross_entropy_with_logits::<Tensor>(y, None, None, Reduction::Mean),
            real()?,
            real()?,
        ),
        pair(
            "CrossEntropyLoss",
            Box::new(CrossEntropyLoss::new()),
            |x, y| x.cross_entropy_loss::<Tensor>(y, None, Reduction::Mean, -100, 0.0),
            real()?,
            classes()?,
        ),
        pair(
            "NllLoss",
            Box::new(NllLoss::new()),
            |x, y| x.nll_loss_nd::<Tensor>(y, None, Reduction::Mean, -100),
            real()?.f_log_softmax(1, None)?,
            classes()?,
        ),
    ])
}

/// The median seconds per call of the bare operation and of the crate.
fn measure(pair: &Pair, options: &BenchOptions) -> (f64, f64) {
    let time = |call: &dyn Fn() -> Tensor| {
        let start = Instant::now();
        for _ in 0..options.calls {
            let _ = std::hint::black_box(call());
        }
        start.elapsed().as_secs_f64() / f64::from(options.calls)
    };
    let bare = || (pair.bare)(&pair.input, &pair.target);
    let ours = || pair.loss.forward(&pair.input, &pair.target);
    time(&bare);
    time(&ours);
    let (bare, ours) = (0..options.rounds).map(|_| (time(&bare), time(&ours))).unzip();
    (median(bare), median(ours))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
