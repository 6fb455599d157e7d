//! The ratios as bars.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::measure::Pass;
use super::report::{Record, Report};

const ROW: u32 = 26;
const WIDTH: u32 = 1100;
const LABELS: u32 = 420;
/// Above the bars: the title and the key.
const MARGIN: u32 = 60;
/// The number that a bar shows.
type Ratio = fn(&Record) -> Option<f64>;

const EAGER: RGBColor = RGBColor(31, 119, 180);
const COMPILE: RGBColor = RGBColor(255, 127, 14);

/// Draws the ratios of training steps, or of forward where nothing else was measured, into an SVG file.
pub fn draw(report: &Report, file: &Path) -> Result<()> {
    let of = |pass: Pass| report.records.iter().filter(move |record| record.pass == pass).collect::<Vec<_>>();
    let (mut records, mut what) = (of(Pass::Backward), "forward + backward");
    if records.is_empty() {
        (records, what) = (of(Pass::Forward), "forward");
    }
    let rows = records.len();
    let root = SVGBackend::new(file, (WIDTH, ROW * rows as u32 + MARGIN + 40)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("time of PyTorch / time of tch-losses, {what}");
    root.draw(&Text::new(title, (LABELS as i32 + 20, 10), ("sans-serif", 20)))?;
    let (least, most) = range(&records);
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_top(MARGIN)
        .margin_right(30)
        .x_label_area_size(30)
        .y_label_area_size(LABELS)
        // The first row stands at the top.
        .build_cartesian_2d((least..most).log_scale(), rows as f64..0.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().y_labels(0);
    mesh.x_label_formatter(&|ratio| format!("{ratio}×")).label_style(("sans-serif", 13)).draw()?;

    let beside = ("sans-serif", 13).into_text_style(&root).pos(Pos::new(HPos::Right, VPos::Center));
    let names = records.iter().enumerate().map(|(at, record)| {
        let name = Text::new(format!("{}  {}", record.loss, record.shape), (-8, 0), beside.clone());
        EmptyElement::at((least, at as f64 + 0.5)) + name
    });
    chart.draw_series(names)?;
    let series: [(&str, RGBColor, Ratio); 2] = [
        ("eager", EAGER, |record| Some(record.eager_ratio.median)),
        ("torch.compile", COMPILE, |record| record.compile_ratio.map(|ratio| ratio.median)),
    ];
    for (position, (name, colour, ratio)) in series.into_iter().enumerate() {
        let top = 0.1 + 0.4 * position as f64;
        let bars = records.iter().enumerate().filter_map(|(at, record)| {
            let corners = [(1.0, at as f64 + top), (ratio(record)?, at as f64 + top + 0.4)];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart.draw_series(bars)?;
        // The key stands above the bars, where it covers none.
        let x = LABELS as i32 + 20 + 200 * position as i32;
        root.draw(&Rectangle::new([(x, 36), (x + 12, 48)], colour.filled()))?;
        root.draw(&Text::new(format!("{name} / ours"), (x + 18, 36), ("sans-serif", 14)))?;
    }
    chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, rows as f64)], BLACK)])?;
    root.present()?;
    Ok(())
}

/// The ends of the axis: all ratios, 1 and a little more.
fn range(records: &[&Record]) -> (f64, f64) {
    let ratios = records.iter().flat_map(|record| {
        [Some(record.eager_ratio.median), record.compile_ratio.map(|ratio| ratio.median)].into_iter().flatten()
    });
    let (least, most) = ratios.fold((1.0_f64, 1.0_f64), |(least, most), ratio| (least.min(ratio), most.max(ratio)));
    (least / 1.2, most * 1.2)
}
