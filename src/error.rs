//! The one error type of the crate.

use tch::{Device, Kind, TchError};

/// Why a loss could not be computed.
///
/// Every variant names the argument or option at fault, what was expected and what came.
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, LossError, MseLoss};
///
/// let input = Tensor::from_slice(&[1.0, 2.0, 3.0]);
/// let target = Tensor::from_slice(&[1.0, 2.0]);
/// let error = MseLoss::new().f_forward(&input, &target).unwrap_err();
/// assert!(matches!(error, LossError::Shape { argument: "target", .. }));
/// assert_eq!(error.to_string(), "target has shape [2], expected [3], the shape of input");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// An argument has a shape that does not fit.
    #[error("{argument} has shape {actual:?}, expected {expected}")]
    Shape {
        /// The argument at fault.
        argument: &'static str,
        /// The shape it should have, and why.
        expected: String,
        /// The shape it has.
        actual: Vec<i64>,
    },
    /// An argument has a dtype that does not fit.
    #[error("{argument} has kind {actual:?}, expected {expected}")]
    Kind {
        /// The argument at fault.
        argument: &'static str,
        /// The kinds it may have.
        expected: String,
        /// The kind it has.
        actual: Kind,
    },
    /// An argument is on another device than the first one.
    #[error("{argument} is on {actual:?}, expected {expected:?}, the device of {of}")]
    Device {
        /// The argument at fault.
        argument: &'static str,
        /// The argument whose device counts.
        of: &'static str,
        /// The device of `of`.
        expected: Device,
        /// The device of `argument`.
        actual: Device,
    },
    /// An argument is a tensor without data, such as `Tensor::new()` or the gradient of a tensor that has none.
    #[error("{argument} is an undefined tensor")]
    Undefined {
        /// The argument at fault.
        argument: &'static str,
    },
    /// An argument is a sparse tensor; losses take dense ones.
    #[error("{argument} is a sparse tensor, expected a dense one")]
    Sparse {
        /// The argument at fault.
        argument: &'static str,
    },
    /// An argument is a tensor of a layout that losses do not take: nested, of MKL-DNN, quantised.
    #[error("{argument} is a {layout} tensor, expected a dense one")]
    Layout {
        /// The argument at fault.
        argument: &'static str,
        /// What it is.
        layout: &'static str,
    },
    /// There is no memory for numbers that are needed on the host.
    #[error("no memory for {bytes} bytes")]
    Memory {
        /// How many bytes were asked for.
        bytes: u128,
    },
    /// An argument holds a value outside its range.
    #[error("{argument} holds {actual}, expected {expected}")]
    Value {
        /// The argument at fault.
        argument: &'static str,
        /// The range of its values.
        expected: String,
        /// A value outside that range.
        actual: String,
    },
    /// An option of the loss has a value outside its range.
    #[error("option {option} is {actual}, expected {expected}")]
    Option {
        /// The option at fault.
        option: &'static str,
        /// The values it may take.
        expected: String,
        /// The value it has.
        actual: String,
    },
    /// The loss is not a mean, so that it has no numerator and denominator.
    #[error("{loss} has no numerator and denominator: {reason}")]
    NoMean {
        /// The loss.
        loss: String,
        /// Why it is not a mean.
        reason: &'static str,
    },
    /// A loss of another crate does not say which tensors it holds, and so can be neither moved nor copied.
    #[error("the loss does not say which tensors it holds: it has no Loss::with_tensors")]
    NoTensors,
    /// There is nothing to average over, which was asked to be an error: [`WhenEmpty::Error`](crate::WhenEmpty::Error).
    #[error("the mean is over nothing: an empty batch, or one of which nothing counts")]
    Empty,
    /// A term of a sum of losses could not be computed.
    #[error("term {term}: {source}")]
    Term {
        /// The name of the term.
        term: String,
        /// What is wrong with it.
        source: Box<LossError>,
    },
    /// The ranks of a [`Group`](crate::distributed::Group) are about to do different things, or one of them has an error
    /// of its own. All ranks but that one have this error, and the group can be used further.
    #[cfg(feature = "distributed")]
    #[error("ranks disagree: {asked}")]
    Ranks {
        /// What each of them is about to do.
        asked: String,
    },
    /// A [`Group`](crate::distributed::Group) cannot be made, or another rank is late, dead or out of reach.
    #[cfg(feature = "distributed")]
    #[error("{operation} failed: {message}")]
    Group {
        /// What was called.
        operation: &'static str,
        /// Why it failed.
        message: String,
        /// The ranks that gave no sign of life.
        silent: Vec<usize>,
    },
    /// A message of a function of the user's: a backward function, a distance, a loss.
    #[error("{message}")]
    Custom {
        /// The message.
        message: String,
    },
    /// libtorch rejected the call.
    #[error("libtorch: {message}")]
    Torch {
        /// The first line of libtorch's message; the rest of it is a C++ stack.
        message: String,
        /// The error as tch reports it, cut to the same line.
        #[source]
        source: TchError,
    },
}

impl LossError {
    /// An error with a message of your own, for a [`Loss`](crate::Loss) or a [`Function`](crate::autograd::Function) of
    /// your own.
    ///
    /// ```
    /// use tch::Tensor;
    /// use tch_losses::{Loss, LossError};
    ///
    /// #[derive(Debug)]
    /// struct Moved;
    ///
    /// impl Loss for Moved {
    ///     fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    ///         if input.numel() == 0 {
    ///             return Err(LossError::custom("there are no points to be moved"));
    ///         }
    ///         Ok(input.f_sub(target)?.f_square()?.f_mean(None)?)
    ///     }
    /// }
    ///
    /// let nothing = Tensor::from_slice::<f32>(&[]);
    /// assert_eq!(Moved.f_forward(&nothing, &nothing).unwrap_err().to_string(), "there are no points to be moved");
    /// ```
    pub fn custom(message: impl Into<String>) -> Self {
        LossError::Custom { message: message.into() }
    }

    /// The error for a loss of type `L` that is not a mean.
    pub(crate) fn no_mean<L: ?Sized>(reason: &'static str) -> Self {
        Self::no_mean_of(std::any::type_name::<L>(), reason)
    }

    fn no_mean_of(type_name: &str, reason: &'static str) -> Self {
        let path = type_name.split('<').next().unwrap_or_default();
        let loss = path.rsplit("::").next().unwrap_or_default().to_owned();
        LossError::NoMean { loss, reason }
    }

    /// The error of the term `term` of a sum.
    pub(crate) fn in_term(self, term: &str) -> Self {
        LossError::Term { term: term.to_owned(), source: Box::new(self) }
    }
}

impl From<TchError> for LossError {
    fn from(error: TchError) -> Self {
        let source = match error {
            TchError::Torch(text) => TchError::Torch(first_line(&text)),
            other => other,
        };
        let message = match &source {
            TchError::Torch(line) => line.clone(),
            other => first_line(&other.to_string()),
        };
        LossError::Torch { message, source }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtorch_error_keeps_one_line() {
        let error = LossError::from(TchError::Torch("bad size\nException raised from f\nframe #0".into()));
        assert_eq!(error.to_string(), "libtorch: bad size");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "Internal torch error: bad size");
    }
}
