//! What the nets are made of.

use tch::{Tensor, nn};

/// A convolution that keeps the size of its images.
pub fn same_size(kernel: i64) -> nn::ConvConfig {
    nn::ConvConfig { padding: kernel / 2, ..Default::default() }
}

/// Two convolutions of 3 × 3, each with a batch norm and a ReLU.
pub fn block(path: &nn::Path, inputs: i64, outputs: i64) -> nn::SequentialT {
    // The batch norm has a bias of its own.
    let conv = nn::ConvConfig { bias: false, ..same_size(3) };
    nn::seq_t()
        .add(nn::conv2d(path / "conv1", inputs, outputs, 3, conv))
        .add(nn::batch_norm2d(path / "norm1", outputs, Default::default()))
        .add_fn(Tensor::relu)
        .add(nn::conv2d(path / "conv2", outputs, outputs, 3, conv))
        .add(nn::batch_norm2d(path / "norm2", outputs, Default::default()))
        .add_fn(Tensor::relu)
}

/// Vectors of length 1 in the same directions.
pub fn unit(vectors: &Tensor) -> Tensor {
    vectors / vectors.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12)
}
