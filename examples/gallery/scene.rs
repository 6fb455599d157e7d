//! The drawing beside the curves: what is moved, in a plane.

use std::ops::Range;

use tch::Tensor;

use crate::contour;
use crate::picture::rounded;

/// How many rows the hatching of a region has.
const ROWS: u32 = 22;
/// How often the end of a row is halved.
const HALVINGS: u32 = 20;
/// The grid on which level lines are looked for has so many cells in each direction: a number that puts no round one on
/// its corners, where a line would fall apart.
const CELLS: usize = 37;

/// Shapes in a square part of the plane.
pub struct Scene {
    /// What is seen.
    pub caption: &'static str,
    /// The sides of the square, the same in both directions.
    pub extent: Range<f64>,
    /// What the axes are, where they are numbers and no places.
    pub axes: Option<[&'static str; 2]>,
    pub shapes: Vec<Shape>,
}

/// What a shape is part of.
#[derive(Clone, Copy)]
pub enum Role {
    /// What is to be reached.
    Target,
    /// What is moved.
    Moved,
    /// Where it has been or will be.
    Trace,
    /// The rest.
    Other,
}

pub enum Shape {
    /// The corners x₁, y₁, x₂, y₂.
    Box([f64; 4], Role),
    /// Centre and radius.
    Circle([f64; 2], f64, Role),
    /// A named place.
    Dot([f64; 2], &'static str, Role),
    Arrow([f64; 2], [f64; 2]),
    Line(Vec<[f64; 2]>, Role),
    /// A row of hatching.
    Hatch([f64; 2], [f64; 2]),
}

/// A loss over the plane: of a tensor of two numbers.
type Plane<'a> = &'a dyn Fn(&Tensor) -> Tensor;

impl Scene {
    pub fn new(caption: &'static str, extent: Range<f64>) -> Self {
        Scene { caption, extent, axes: None, shapes: Vec::new() }
    }

    pub fn axes(mut self, x: &'static str, y: &'static str) -> Self {
        self.axes = Some([x, y]);
        self
    }

    pub fn with(mut self, shape: Shape) -> Self {
        self.shapes.push(shape);
        self
    }

    /// Hatches where the loss is 0, and draws the lines along which it has one of some levels.
    pub fn region(mut self, levels: &[f64], loss: Plane) -> Self {
        let value = |x: f64, y: f64| rounded(loss(&Tensor::from_slice(&[x, y])).double_value(&[]));
        self.hatch(&value);
        let lines = levels.iter().flat_map(|level| contour::lines(&value, &self.extent, CELLS, *level));
        self.shapes.extend(lines.map(|line| Shape::Line(line, Role::Trace)));
        self
    }

    fn hatch(&mut self, value: &dyn Fn(f64, f64) -> f64) {
        let (start, side) = (self.extent.start, self.extent.end - self.extent.start);
        for row in 0..ROWS {
            let y = start + side * (f64::from(row) + 0.5) / f64::from(ROWS);
            let is_free = |x: f64| value(x, y) <= 0.0;
            let xs: Vec<f64> = (0..=CELLS).map(|cell| start + side * cell as f64 / CELLS as f64).collect();
            let mut begin = is_free(xs[0]).then_some(xs[0]);
            for pair in xs.windows(2) {
                match (begin, is_free(pair[1])) {
                    (None, true) => begin = Some(border(pair[1], pair[0], is_free)),
                    (Some(from), false) => {
                        let to = border(pair[0], pair[1], is_free);
                        self.shapes.push(Shape::Hatch([from, y], [to, y]));
                        begin = None;
                    }
                    _ => {}
                }
            }
            let rest = begin.map(|from| Shape::Hatch([from, y], [self.extent.end, y]));
            self.shapes.extend(rest);
        }
    }
}

/// Where the region ends that `inside` is in and `outside` is not.
fn border(mut inside: f64, mut outside: f64, is_inside: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..HALVINGS {
        let middle = (inside + outside) / 2.0;
        *(if is_inside(middle) { &mut inside } else { &mut outside }) = middle;
    }
    inside
}
