//! Learning curves and points in the plane, as SVG files.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::training::Curve;

/// A colour for each curve or class.
const COLOURS: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(23, 190, 207),
];
const SIZE: (u32, u32) = (860, 320);
const FONT: (&str, u32) = ("sans-serif", 13);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the mean losses, and beside them the scores on held-out data, by epochs.
pub fn curves(curves: &[Curve], score: &str, file: &Path) -> Result<()> {
    let draw = || -> Result<()> {
        let root = SVGBackend::new(file, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (left, right) = root.split_horizontally(SIZE.0 as i32 / 2);
        panel(&left, "loss", curves, |curve| &curve.losses)?;
        panel(&right, score, curves, |curve| &curve.scores)?;
        for (at, curve) in curves.iter().enumerate() {
            // The key stands in the right panel, where curves of scores leave most room: in the middle.
            let y = 90 + 18 * at as i32;
            right.draw(&Rectangle::new([(250, y), (262, y + 10)], colour(at).filled()))?;
            right.draw(&Text::new(curve.name.clone(), (268, y), FONT))?;
        }
        root.present()?;
        Ok(())
    };
    finished(draw(), file)
}

/// One number of each epoch of each curve.
fn panel(area: &Area, title: &str, curves: &[Curve], numbers: fn(&Curve) -> &Vec<f64>) -> Result<()> {
    let epochs = curves.iter().map(|curve| numbers(curve).len()).max().context("there is no curve")?;
    let (least, most) = range(curves.iter().flat_map(numbers).copied());
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, ("sans-serif", 16))
        .x_label_area_size(34)
        .y_label_area_size(46)
        .build_cartesian_2d(1.0..(epochs as f64).max(2.0), least..most)?;
    // Whole epochs: a label for each of the first few, for some of many.
    let labels = epochs.min(10);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(labels)
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .x_desc("epoch")
        .label_style(FONT)
        .draw()?;
    for (at, curve) in curves.iter().enumerate() {
        let points: Vec<(f64, f64)> = (1..).map(f64::from).zip(numbers(curve).iter().copied()).collect();
        let dots: Vec<_> = points.iter().map(|&point| Circle::new(point, 2, colour(at).filled())).collect();
        chart.draw_series([PathElement::new(points, colour(at).stroke_width(2))])?;
        chart.draw_series(dots)?;
    }
    Ok(())
}

/// Draws points in the plane, each in the colour of its class.
pub fn points(points: &[(f64, f64)], classes: &[i64], title: &str, file: &Path) -> Result<()> {
    let draw = || -> Result<()> {
        let root = SVGBackend::new(file, (480, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let (left, right) = range(points.iter().map(|point| point.0));
        let (bottom, top) = range(points.iter().map(|point| point.1));
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(60)
            .caption(title, ("sans-serif", 16))
            .build_cartesian_2d(left..right, bottom..top)?;
        chart.configure_mesh().disable_mesh().draw()?;
        let mut present: Vec<i64> = classes.to_vec();
        present.sort_unstable();
        present.dedup();
        let rank = |class| present.partition_point(|&other| other < class);
        let dots = points.iter().zip(classes).map(|(&at, &class)| Circle::new(at, 3, colour(rank(class)).filled()));
        chart.draw_series(dots)?;
        for (at, class) in present.iter().enumerate() {
            let y = 50 + 18 * at as i32;
            root.draw(&Circle::new((435, y + 6), 4, colour(at).filled()))?;
            root.draw(&Text::new(format!("{class:02}"), (446, y), FONT))?;
        }
        root.present()?;
        Ok(())
    };
    finished(draw(), file)
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// From the least to the greatest number, and a little more on both sides.
fn range(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) =
        numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
    let room = ((most - least) * 0.05).max(1e-3);
    (least - room, most + room)
}

fn finished(result: Result<()>, file: &Path) -> Result<()> {
    result.map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    println!("picture {}", file.display());
    Ok(())
}
