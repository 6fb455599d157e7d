//! The exact Euclidean distance transform, on the host.

/// The squared distance of every pixel of a mask to the nearest pixel of the other side; 0 where there is no other
/// side.
///
/// The mask lies in row-major order. Takes time linear in the number of pixels.
pub(super) fn squared_distances(mask: &[bool], shape: &[usize]) -> Vec<f64> {
    let inside = mask.iter().filter(|&&pixel| pixel).count();
    if inside == 0 || inside == mask.len() {
        return vec![0.0; mask.len()];
    }
    let to_outside = squared_distances_to(mask, false, shape);
    let to_inside = squared_distances_to(mask, true, shape);
    let sides = to_outside.into_iter().zip(to_inside);
    // Each pixel is at distance 0 of its own side.
    sides.map(|(outside, inside)| outside + inside).collect()
}

/// The squared distance of every pixel to the nearest one of the value `side`.
fn squared_distances_to(mask: &[bool], side: bool, shape: &[usize]) -> Vec<f64> {
    let mut squares: Vec<f64> = mask.iter().map(|&pixel| if pixel == side { 0.0 } else { f64::INFINITY }).collect();
    let mut stride = mask.len();
    for &length in shape {
        let block = stride;
        stride /= length;
        let mut envelope = Envelope::new(length);
        for start in (0..squares.len()).step_by(block) {
            for first in start..start + stride {
                envelope.transform(&mut squares[first..], stride);
            }
        }
    }
    squares
}

/// The lower envelope of parabolas, one for each pixel of a line (Felzenszwalb and Huttenlocher, 2012).
struct Envelope {
    /// The heights of the line's pixels.
    heights: Vec<f64>,
    /// The pixels whose parabolas make up the envelope, from left to right, and where each of them begins.
    parts: Vec<(usize, f64)>,
}

impl Envelope {
    fn new(length: usize) -> Self {
        Self { heights: vec![0.0; length], parts: Vec::with_capacity(length) }
    }

    /// Replaces every height h\[x\] of the line, whose pixels are `stride` apart, by min h\[y\] + (x − y)².
    fn transform(&mut self, line: &mut [f64], stride: usize) {
        for (height, value) in self.heights.iter_mut().zip(line.iter().step_by(stride)) {
            *height = *value;
        }
        self.parts.clear();
        for pixel in 0..self.heights.len() {
            self.add(pixel);
        }
        if self.parts.is_empty() {
            return;
        }
        let mut part = 0;
        for (pixel, value) in line.iter_mut().step_by(stride).take(self.heights.len()).enumerate() {
            while self.parts.get(part + 1).is_some_and(|(_, begin)| *begin <= pixel as f64) {
                part += 1;
            }
            let (lowest, _) = self.parts[part];
            *value = self.heights[lowest] + pixel.abs_diff(lowest).pow(2) as f64;
        }
    }

    /// Adds the parabola of a pixel to the right of those there are, and drops those that it covers.
    fn add(&mut self, pixel: usize) {
        if self.heights[pixel].is_infinite() {
            return;
        }
        while let Some(&(last, begin)) = self.parts.last() {
            let crossing = self.crossing(last, pixel);
            if crossing > begin {
                self.parts.push((pixel, crossing));
                return;
            }
            self.parts.pop();
        }
        self.parts.push((pixel, f64::NEG_INFINITY));
    }

    /// Where the parabola of `right` becomes lower than that of `left`.
    fn crossing(&self, left: usize, right: usize) -> f64 {
        let offset = |pixel: usize| self.heights[pixel] + pixel.pow(2) as f64;
        (offset(right) - offset(left)) / (2 * (right - left)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: every pixel against every other one.
    fn by_definition(mask: &[bool], shape: &[usize]) -> Vec<f64> {
        let place = |mut index: usize| -> Vec<f64> {
            let digits = shape.iter().rev().map(|length| {
                let digit = index % length;
                index /= length;
                digit as f64
            });
            digits.collect()
        };
        let square = |a: usize, b: usize| place(a).iter().zip(place(b)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let nearest = |pixel: usize| {
            let others = (0..mask.len()).filter(|&other| mask[other] != mask[pixel]);
            others.map(|other| square(pixel, other)).reduce(f64::min).unwrap_or(0.0)
        };
        (0..mask.len()).map(nearest).collect()
    }

    #[test]
    fn it_is_the_distance_to_the_nearest_pixel_of_the_other_side() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        for shape in [&[1][..], &[7], &[1, 9], &[9, 1], &[6, 11], &[17, 16], &[3, 4, 5], &[2, 3, 1, 4]] {
            for share in [2, 3, 20, 1000] {
                let mask: Vec<bool> = (0..shape.iter().product()).map(|_| random() % share == 0).collect();
                assert_eq!(squared_distances(&mask, shape), by_definition(&mask, shape), "{shape:?}");
                let inverse: Vec<bool> = mask.iter().map(|pixel| !pixel).collect();
                assert_eq!(squared_distances(&inverse, shape), squared_distances(&mask, shape));
            }
        }
    }

    #[test]
    fn a_mask_of_one_side_has_no_distances() {
        assert_eq!(squared_distances(&[true; 6], &[2, 3]), [0.0; 6]);
        assert_eq!(squared_distances(&[false; 6], &[2, 3]), [0.0; 6]);
        assert!(squared_distances(&[], &[0, 3]).is_empty());
    }
}
