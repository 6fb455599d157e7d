//! What a call of the crate costs over the bare tch operation, on tensors so small that little else counts.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow};
use comfy_table::{CellAlignment, Table, presets};
use tch::Reduction::Mean;
use tch::{Device, Kind, TchError, Tensor};
use tch_losses::{
    BceLoss, BceWithLogitsLoss, CosineEmbeddingLoss, CrossEntropyLoss, CtcLoss, HingeEmbeddingLoss, HuberLoss,
    KlDivLoss, L1Loss, Loss, LossError, MarginRankingLoss, MseLoss, MultiLabelMarginLoss, NllLoss, PoissonNllLoss,
    SmoothL1Loss, SoftMarginLoss, TripletMarginLoss,
};

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct OverheadOptions {
    /// Rounds; in each the two sides alternate.
    pub rounds: u32,
    /// Calls per side and round.
    pub calls: u32,
}

type Ours = Box<dyn Fn(&[Tensor; 3]) -> Result<Tensor, LossError>>;

/// A loss beside the tch operation that it ends in, on the arguments `x, y, z`.
struct Row {
    name: &'static str,
    bare: fn(&[Tensor; 3]) -> Result<Tensor, TchError>,
    ours: Ours,
    arguments: [Tensor; 3],
}

/// Measures and prints the table.
pub fn run(options: &OverheadOptions) -> Result<()> {
    tch::set_num_threads(1);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["loss, 2×4 elements, forward", "bare tch, µs", "this crate, µs", "added, µs"]);
    for row in rows()? {
        let (bare, ours) = measure(&row, options).map_err(|error| anyhow!("{}: {error}", row.name))?;
        let cells = [bare, ours, ours - bare].map(|seconds| format!("{:.2}", seconds * 1e6));
        table.add_row(std::iter::once(row.name.to_owned()).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let OverheadOptions { rounds, calls } = options;
    println!("{table}\n\nmedian over {rounds} rounds of {calls} calls, the two sides alternating; one thread");
    Ok(())
}

fn rows() -> Result<Vec<Row>> {
    let random = || Tensor::f_rand([2, 4], (Kind::Float, Device::Cpu));
    let (x, y, z) = (random()?, random()?, random()?);
    let log_probs = x.f_log_softmax(1, None)?;
    let classes = Tensor::f_from_slice(&[1_i64, 3])?;
    let labels = Tensor::f_from_slice(&[1_i64, 3, -1, 0, 2, -1, 0, 0])?.f_view([2, 4])?;
    let signs = Tensor::f_from_slice(&[1_f32, -1.0])?;
    let steps = Tensor::f_rand([6, 2, 4], (Kind::Float, Device::Cpu))?.f_log_softmax(2, None)?;

    let real = || [x.shallow_clone(), y.shallow_clone(), z.shallow_clone()];
    let with = |input: &Tensor, target: &Tensor| [input.shallow_clone(), target.shallow_clone(), z.shallow_clone()];
    let row = |name, bare, ours, arguments| Row { name, bare, ours, arguments };
    let signed = || [x.shallow_clone(), y.shallow_clone(), signs.shallow_clone()];
    Ok(vec![
        row("L1Loss", |[x, y, _]| x.f_l1_loss(y, Mean), pair(L1Loss::new()), real()),
        row("MseLoss", |[x, y, _]| x.f_mse_loss(y, Mean), pair(MseLoss::new()), real()),
        row("SmoothL1Loss", |[x, y, _]| x.f_smooth_l1_loss(y, Mean, 1.0), pair(SmoothL1Loss::new()), real()),
        row("HuberLoss", |[x, y, _]| x.f_huber_loss(y, Mean, 1.0), pair(HuberLoss::new()), real()),
        row(
            "PoissonNllLoss",
            |[x, y, _]| x.f_poisson_nll_loss(y, true, false, 1e-8, Mean),
            pair(PoissonNllLoss::new()),
            real(),
        ),
        row(
            "CrossEntropyLoss",
            |[x, y, _]| x.f_cross_entropy_loss::<Tensor>(y, None, Mean, -100, 0.0),
            pair(CrossEntropyLoss::new()),
            with(&x, &classes),
        ),
        row(
            "NllLoss",
            |[x, y, _]| x.f_nll_loss_nd::<Tensor>(y, None, Mean, -100),
            pair(NllLoss::new()),
            with(&log_probs, &classes),
        ),
        row("BceLoss", |[x, y, _]| x.f_binary_cross_entropy::<Tensor>(y, None, Mean), pair(BceLoss::new()), real()),
        row(
            "BceWithLogitsLoss",
            |[x, y, _]| x.f_binary_cross_entropy_with_logits::<Tensor>(y, None, None, Mean),
            pair(BceWithLogitsLoss::new()),
            real(),
        ),
        row("SoftMarginLoss", |[x, y, _]| x.f_soft_margin_loss(y, Mean), pair(SoftMarginLoss::new()), real()),
        row(
            "MultiLabelMarginLoss",
            |[x, y, _]| x.f_multilabel_margin_loss(y, Mean),
            pair(MultiLabelMarginLoss::new()),
            with(&x, &labels),
        ),
        row("KlDivLoss", |[x, y, _]| x.f_kl_div(y, Mean, false), pair(KlDivLoss::new()), real()),
        row(
            "HingeEmbeddingLoss",
            |[x, y, _]| x.f_hinge_embedding_loss(y, 1.0, Mean),
            pair(HingeEmbeddingLoss::new()),
            real(),
        ),
        row(
            "CosineEmbeddingLoss",
            |[x, y, z]| Tensor::f_cosine_embedding_loss(x, y, z, 0.0, Mean),
            Box::new(|[x, y, z]| CosineEmbeddingLoss::new().f_forward(x, y, z)),
            signed(),
        ),
        row(
            "MarginRankingLoss",
            |[x, y, z]| Tensor::f_margin_ranking_loss(x, y, z, 0.0, Mean),
            Box::new(|[x, y, z]| MarginRankingLoss::new().f_forward(x, y, z)),
            real(),
        ),
        row(
            "TripletMarginLoss",
            |[x, y, z]| Tensor::f_triplet_margin_loss(x, y, z, 1.0, 2.0, 1e-6, false, Mean),
            Box::new(|[x, y, z]| TripletMarginLoss::new().f_forward(x, y, z)),
            real(),
        ),
        row(
            "CtcLoss",
            |[x, y, _]| Tensor::f_ctc_loss(x, y, [6, 5], [2, 1], 0, Mean, false),
            Box::new(|[x, y, _]| CtcLoss::new().f_forward(x, y, [6, 5], [2, 1])),
            with(&steps, &Tensor::f_from_slice(&[1_i64, 2, 3, 3])?.f_view([2, 2])?),
        ),
    ])
}

fn pair(loss: impl Loss + 'static) -> Ours {
    Box::new(move |[x, y, _]| loss.f_forward(x, y))
}

/// The median seconds per call of the bare operation and of the crate.
fn measure(row: &Row, options: &OverheadOptions) -> Result<(f64, f64), LossError> {
    let time = |call: &dyn Fn() -> Result<Tensor, LossError>| {
        let start = Instant::now();
        for _ in 0..options.calls {
            let _ = black_box(call()?);
        }
        Ok::<f64, LossError>(start.elapsed().as_secs_f64() / f64::from(options.calls))
    };
    let bare = || Ok((row.bare)(&row.arguments)?);
    let ours = || (row.ours)(&row.arguments);
    time(&bare)?;
    time(&ours)?;
    let (mut bares, mut ourses) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        bares.push(time(&bare)?);
        ourses.push(time(&ours)?);
    }
    Ok((median(bares), median(ourses)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
