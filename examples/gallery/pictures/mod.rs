//! All pictures, and what those of several families share.

mod classification;
mod detection;
mod embeddings;
mod image;
mod pairs;
mod preference;
mod probabilities;
mod regression;
mod segmentation;
mod self_supervised;

use tch::Tensor;
use tch_losses::Loss;

use crate::picture::Picture;

/// The pictures of some losses that belong together.
pub struct Family {
    pub title: &'static str,
    pub pictures: Vec<Picture>,
}

/// In the order of the documentation.
pub fn families() -> Vec<Family> {
    let family = |title, pictures: fn() -> Vec<Picture>| Family { title, pictures: pictures() };
    vec![
        family("Regression", regression::pictures),
        family("Classification", classification::pictures),
        family("Distributions and sequences", probabilities::pictures),
        family("Pairs and triplets", pairs::pictures),
        family("Embeddings", embeddings::pictures),
        family("Segmentation", segmentation::pictures),
        family("Detection", detection::pictures),
        family("Images", image::pictures),
        family("Self-supervision", self_supervised::pictures),
        family("Preferences", preference::pictures),
    ]
}

fn numbers(numbers: &[f64]) -> Tensor {
    Tensor::from_slice(numbers)
}

fn labels(labels: &[i64]) -> Tensor {
    Tensor::from_slice(labels)
}

/// The loss of one element.
fn element(loss: impl Loss + 'static, target: f64) -> impl Fn(&Tensor) -> Tensor {
    let target = numbers(&[target]);
    move |x| loss.forward(&x.view([1]), &target)
}

/// The loss of one sample of three classes, of which the first one is right and the others have the score 0.
fn right_score(loss: impl Loss + 'static) -> impl Fn(&Tensor) -> Tensor {
    move |x| loss.forward(&row(&[x, &Tensor::from(0.0), &Tensor::from(0.0)]), &labels(&[0]))
}

/// A matrix of one row.
fn row(scores: &[&Tensor]) -> Tensor {
    Tensor::stack(scores, 0).unsqueeze(0)
}

/// The vector of norm 1 at an angle.
fn unit(angle: &Tensor) -> Tensor {
    Tensor::stack(&[angle.cos(), angle.sin()], 0)
}

fn unit_at(angle: f64) -> Tensor {
    unit(&Tensor::from(angle))
}
