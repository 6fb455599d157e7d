//! Draws a picture: its title with the key, the scene, the loss, and the gradient.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::{Shift, types::RangedCoordf64};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::picture::{Picture, Sample, Trace};
use crate::scene::{Role, Scene, Shape};
use crate::svg::{INK, finished};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a> = Cartesian2d<RangedCoordf64, RangedCoordf64>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Plane<'a>>;

/// plotters rounds to whole pixels. So it draws in smaller ones.
const SCALE: u32 = 2;
const CHART: u32 = 280;
const SCENE: u32 = 240;
const HEIGHT: u32 = 220;
/// A line of the title and the key.
const LINE: u32 = 22;
/// plotters divides sizes by 1.24, so that these are 12.5 pixels of the page.
const FONT: u32 = 31;
/// About the width of a letter.
const LETTER: f64 = 6.8 * SCALE as f64;
const THICK: u32 = 2 * SCALE;

/// Of middling lightness, to be seen on white and on black, and told apart by those who confuse red and green.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0x3b, 0x8e, 0xdb), RGBColor(0xdf, 0x74, 0x2b), RGBColor(0x2f, 0xa3, 0x6b), RGBColor(0xb0, 0x68, 0xcc)];

/// The picture as the text of an SVG file.
pub fn draw(picture: &Picture) -> Result<String> {
    let traces = picture.trace()?;
    let width = 2 * CHART + picture.scene.as_ref().map_or(0, |_| SCENE);
    let key = Key::new(picture, width * SCALE);
    let size = (width, HEIGHT + LINE * key.lines);
    let mut drawn = String::new();
    {
        let root = SVGBackend::with_string(&mut drawn, (size.0 * SCALE, size.1 * SCALE)).into_drawing_area();
        key.draw(&root)?;
        let (_, mut rest) = root.split_vertically(LINE * key.lines * SCALE);
        if let Some(scene) = &picture.scene {
            let (left, right) = rest.split_horizontally(SCENE * SCALE);
            draw_scene(&scene(), &left)?;
            rest = right;
        }
        let (left, right) = rest.split_horizontally(CHART * SCALE);
        let panel = |title| Panel { title, axis: picture.axis, range: &picture.range };
        draw_curves(&panel("loss"), &traces, |sample| sample.value, &left)?;
        draw_curves(&panel("gradient"), &traces, |sample| sample.slope, &right)?;
        root.present()?;
    }
    Ok(finished(&drawn, size, SCALE, &picture.description()))
}

impl Picture {
    /// What it shows, in words.
    fn description(&self) -> String {
        let labels: Vec<&str> = self.curves.iter().map(|(label, _)| label.as_str()).collect();
        format!("{}: loss and gradient over {}, for {}", self.losses[0], self.axis, labels.join("; "))
    }
}

/// The title, and which line is which.
struct Key<'a> {
    title: &'a str,
    /// Each with its place.
    entries: Vec<(&'a str, (i32, i32))>,
    lines: u32,
}

impl<'a> Key<'a> {
    const SWATCH: i32 = 18 * SCALE as i32;
    const LEFT: i32 = 6 * SCALE as i32;

    fn new(picture: &'a Picture, width: u32) -> Self {
        let title = picture.losses[0];
        let wide = |text: &str| (text.chars().count() as f64 * LETTER) as i32;
        // Bold letters are wider.
        let mut at = (Self::LEFT + wide(title) * 6 / 5 + 12 * SCALE as i32, 0);
        let mut entries = Vec::new();
        for (label, _) in &picture.curves {
            let needed = Self::SWATCH + wide(label);
            if at.0 + needed > width as i32 {
                at = (Self::LEFT, at.1 + (LINE * SCALE) as i32);
            }
            entries.push((label.as_str(), at));
            at.0 += needed + 8 * SCALE as i32;
        }
        Key { title, entries, lines: (at.1 as u32 / SCALE) / LINE + 1 }
    }

    fn draw(&self, root: &Area) -> Result<()> {
        let middle = (LINE * SCALE / 2) as i32;
        let text = font(root).pos(Pos::new(HPos::Left, VPos::Center));
        let bold = TextStyle { font: ("sans-serif", FONT, FontStyle::Bold).into(), ..text.clone() };
        root.draw(&Text::new(self.title, (Self::LEFT, middle), bold))?;
        for ((label, (x, y)), colour) in self.entries.iter().zip(COLOURS) {
            let line = vec![(*x, y + middle), (x + Self::SWATCH - 5 * SCALE as i32, y + middle)];
            root.draw(&PathElement::new(line, colour.stroke_width(THICK)))?;
            root.draw(&Text::new(*label, (x + Self::SWATCH, y + middle), text.clone()))?;
        }
        Ok(())
    }
}

fn font<'a>(root: &Area) -> TextStyle<'a> {
    ("sans-serif", FONT).into_text_style(root).color(&INK)
}

/// One of the two charts of a picture.
struct Panel<'a> {
    title: &'a str,
    axis: &'a str,
    range: &'a Range<f64>,
}

fn draw_curves(panel: &Panel, traces: &[Trace], number: fn(&Sample) -> f64, area: &Area) -> Result<()> {
    let shown = range_of(traces, number);
    let mut chart = ChartBuilder::on(area)
        .margin_right(14 * SCALE)
        .margin_top(24 * SCALE)
        .margin_left(2 * SCALE)
        .x_label_area_size(38 * SCALE)
        .y_label_area_size(44 * SCALE)
        .build_cartesian_2d(panel.range.clone(), shown.clone())?;
    let title = font(area).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(panel.title, ((48 * SCALE) as i32, (12 * SCALE) as i32), title))?;
    draw_axes(&mut chart, panel.axis)?;
    for (trace, colour) in traces.iter().zip(COLOURS) {
        let points: Vec<(f64, f64)> = trace.iter().map(|sample| (sample.at, number(sample))).collect();
        let sides = [panel.range.end - panel.range.start, shown.end - shown.start];
        for piece in points.split(|(_, number)| !number.is_finite()).filter(|piece| piece.len() > 1) {
            let piece = without_needless(piece, sides);
            chart.draw_series([PathElement::new(piece, colour.stroke_width(THICK))])?;
        }
    }
    Ok(())
}

fn draw_axes(chart: &mut Chart, axis: &str) -> Result<()> {
    let label = font(&chart.plotting_area().strip_coord_spec());
    let short = |number: &f64| format!("{}", (number * 1000.0).round() / 1000.0 + 0.0);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(INK.mix(0.15)).axis_style(INK.mix(0.4));
    mesh.x_labels(5).y_labels(5).x_label_formatter(&short).y_label_formatter(&short);
    mesh.label_style(label.clone()).axis_desc_style(label).x_desc(axis).draw()?;
    Ok(())
}

/// The values of all lines, and a little more.
fn range_of(traces: &[Trace], number: fn(&Sample) -> f64) -> Range<f64> {
    let numbers = traces.iter().flatten().map(number).filter(|number| number.is_finite());
    let (least, most) =
        numbers.fold((f64::MAX, f64::MIN), |(least, most), number| (least.min(number), most.max(number)));
    // A gradient that is the same everywhere is a line in the middle.
    let margin = if most > least { 0.06 * (most - least) } else { 0.5 };
    least - margin..most + margin
}

/// Leaves out the points that nobody would see missing, which keeps the file small: those that a straight line between two
/// others misses by less than a share of the chart (Douglas and Peucker).
fn without_needless(points: &[(f64, f64)], [width, height]: [f64; 2]) -> Vec<(f64, f64)> {
    const SHARE: f64 = 0.001;
    let (first, last) = (points[0], points[points.len() - 1]);
    let from_chord = |(x, y): (f64, f64)| {
        let (dx, dy) = ((last.0 - first.0) / width, (last.1 - first.1) / height);
        let (px, py) = ((x - first.0) / width, (y - first.1) / height);
        // The ends of a closed line are one point.
        if (dx, dy) == (0.0, 0.0) { px.hypot(py) } else { (dx * py - dy * px).abs() / dx.hypot(dy) }
    };
    let distances = points.iter().map(|point| from_chord(*point)).enumerate();
    let (place, distance) = distances.fold((0, 0.0), |most, other| if other.1 > most.1 { other } else { most });
    if distance <= SHARE {
        return vec![first, last];
    }
    let mut kept = without_needless(&points[..=place], [width, height]);
    kept.pop();
    kept.extend(without_needless(&points[place..], [width, height]));
    kept
}

fn draw_scene(scene: &Scene, area: &Area) -> Result<()> {
    // A square, since a circle is to be one.
    let beside = (SCENE + 24 + 38 - HEIGHT) * SCALE;
    let mut chart = ChartBuilder::on(area)
        .margin_top(24 * SCALE)
        .margin_right(beside / 2)
        .margin_left(beside - beside / 2)
        .margin_bottom(38 * SCALE)
        .build_cartesian_2d(scene.extent.clone(), scene.extent.clone())?;
    let text = font(area).pos(Pos::new(HPos::Center, VPos::Center));
    let middle = (SCENE * SCALE / 2) as i32;
    area.draw(&Text::new(scene.caption, (middle, (12 * SCALE) as i32), text.clone()))?;
    let corners = [(scene.extent.start, scene.extent.start), (scene.extent.end, scene.extent.end)];
    chart.draw_series([Rectangle::new(corners, INK.mix(0.4))])?;
    if let Some([x, y]) = scene.axes {
        area.draw(&Text::new(x, (middle, ((HEIGHT - 26) * SCALE) as i32), text.clone()))?;
        let upright = text.transform(FontTransform::Rotate270);
        area.draw(&Text::new(y, ((beside / 4) as i32, (HEIGHT * SCALE / 2) as i32), upright))?;
    }
    for shape in &scene.shapes {
        draw_shape(shape, scene.extent.end - scene.extent.start, &mut chart)?;
    }
    Ok(())
}

/// Draws a shape of a scene whose sides have a length.
fn draw_shape(shape: &Shape, side: f64, chart: &mut Chart) -> Result<()> {
    let point = |[x, y]: [f64; 2]| (x, y);
    match shape {
        Shape::Box([x0, y0, x1, y1], role) => {
            // The rectangle of plotters has no width of its lines.
            let around = vec![(*x0, *y0), (*x1, *y0), (*x1, *y1), (*x0, *y1), (*x0, *y0)];
            chart.draw_series([PathElement::new(around, style(*role))])?;
        }
        Shape::Circle(centre, radius, role) => {
            let around = (0..=48).map(|step| f64::from(step) / 48.0 * std::f64::consts::TAU);
            let points: Vec<_> =
                around.map(|angle| (centre[0] + radius * angle.cos(), centre[1] + radius * angle.sin())).collect();
            chart.draw_series([PathElement::new(points, style(*role))])?;
        }
        Shape::Dot(at, name, role) => {
            let label = font(&chart.plotting_area().strip_coord_spec()).pos(Pos::new(HPos::Left, VPos::Bottom));
            let dot = Circle::new((0, 0), (4 * SCALE) as i32, style(*role).color.filled());
            let text = Text::new((*name).to_owned(), ((6 * SCALE) as i32, 0), label);
            chart.draw_series([EmptyElement::at(point(*at)) + dot + text])?;
        }
        Shape::Arrow(from, to) => {
            let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
            let head = |turn: f64| (to[0] - 0.2 * dx - turn * dy, to[1] - 0.2 * dy + turn * dx);
            let line = vec![point(*from), point(*to), head(0.12), point(*to), head(-0.12)];
            chart.draw_series([PathElement::new(line, INK.stroke_width(SCALE))])?;
        }
        Shape::Line(points, role) => {
            let points: Vec<_> = points.iter().copied().map(point).collect();
            chart.draw_series([PathElement::new(without_needless(&points, [side; 2]), style(*role))])?;
        }
        Shape::Hatch(from, to) => {
            chart
                .draw_series([PathElement::new(vec![point(*from), point(*to)], COLOURS[2].mix(0.6).stroke_width(2))])?;
        }
    }
    Ok(())
}

fn style(role: Role) -> ShapeStyle {
    match role {
        Role::Target => COLOURS[2].stroke_width(THICK),
        Role::Moved => COLOURS[0].stroke_width(THICK),
        Role::Trace => COLOURS[0].mix(0.5).stroke_width(SCALE),
        Role::Other => INK.mix(0.6).stroke_width(SCALE),
    }
}
