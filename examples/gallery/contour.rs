//! Level lines of a function on a grid: marching squares, and the joining of what they find.

use std::ops::Range;

type Point = [f64; 2];

/// The lines along which `value` is `level` in a square of `cells` times `cells` cells.
pub fn lines(value: &dyn Fn(f64, f64) -> f64, extent: &Range<f64>, cells: usize, level: f64) -> Vec<Vec<Point>> {
    let at = |index: usize| extent.start + (extent.end - extent.start) * index as f64 / cells as f64;
    let rows: Vec<Vec<f64>> = (0..=cells).map(|y| (0..=cells).map(|x| value(at(x), at(y)) - level).collect()).collect();
    let mut segments = Vec::new();
    for y in 0..cells {
        for x in 0..cells {
            // Around the cell; the last corner is the first one again.
            let corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)];
            let crossings: Vec<Point> = corners
                .windows(2)
                .filter_map(|side| {
                    // In one direction, whichever of its cells asks, so that both get the same point.
                    let [(x0, y0), (x1, y1)] = if side[0] < side[1] { [side[0], side[1]] } else { [side[1], side[0]] };
                    crossing([at(x0), at(y0)], rows[y0][x0], [at(x1), at(y1)], rows[y1][x1])
                })
                .collect();
            segments.extend(crossings.chunks_exact(2).map(|ends| [ends[0], ends[1]]));
        }
    }
    join(segments)
}

/// Where between two points a function is 0 that has these values there.
fn crossing(from: Point, at_from: f64, to: Point, at_to: f64) -> Option<Point> {
    ((at_from < 0.0) != (at_to < 0.0)).then(|| {
        let share = at_from / (at_from - at_to);
        std::array::from_fn(|axis| from[axis] + share * (to[axis] - from[axis]))
    })
}

/// Joins segments whose ends are the same.
fn join(mut segments: Vec<[Point; 2]>) -> Vec<Vec<Point>> {
    let mut lines = Vec::new();
    while let Some([start, next]) = segments.pop() {
        let mut line = std::collections::VecDeque::from([start, next]);
        while let Some((place, point)) = follower(&segments, line[line.len() - 1]) {
            segments.swap_remove(place);
            line.push_back(point);
        }
        while let Some((place, point)) = follower(&segments, line[0]) {
            segments.swap_remove(place);
            line.push_front(point);
        }
        lines.push(line.into());
    }
    lines
}

/// The segment that begins or ends at a point, and its other end.
fn follower(segments: &[[Point; 2]], at: Point) -> Option<(usize, Point)> {
    segments.iter().enumerate().find_map(|(place, [from, to])| match at {
        at if at == *from => Some((place, *to)),
        at if at == *to => Some((place, *from)),
        _ => None,
    })
}
