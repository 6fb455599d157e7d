//! From data to the values of options.

use tch::{Device, Kind, Tensor};

use super::registry::{Described, f_one_of};
use super::value::Value;
use crate::{
    Activation, AnchorReduction, BceWithLogitsLoss, CharbonnierMinimum, CrossEntropyLoss, CrossEntropyPart, DiceLoss,
    Divisor, EmbeddingDistance, EmbeddingReduction, EmptyMask, FocalAlpha, FocalNormalization, FocalPart, FocalPower,
    FocalSoftTargets, FocalTverskyLoss, GeneralizedDiceLoss, Grouping, HingeTargets, IgnoreScope, InvalidValues,
    JaccardLoss, KlDivReduction, LovaszClasses, MeanOver, MsSsimScope, MultiLabelReduction, NoBoundary,
    OneVsRestFocalLoss, Overlap, OverlapMeasure, PsnrScope, Quantiles, Reduction, SigmoidFocalLoss, SoftmaxFocalLoss,
    SsimForm, SsimPadding, SsimScope, SsimWindow, TripletMining, TverskyLoss, VolumeWeight, WeightedMean, WhenEmpty,
};

/// Why data describe no loss: one sentence.
pub(super) type Problem = String;

/// Of which kind and where the tensors among the options are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) kind: Kind,
}

impl Place {
    /// Where options are read first.
    pub(super) const DEFAULT: Place = Place { device: Device::Cpu, kind: Kind::Float };
}

/// Why a value is none for an option.
pub(super) enum Mismatch {
    /// What it should be.
    Expected(String),
    /// What is wrong inside of it.
    Inside(Problem),
}

/// A type of options.
pub(super) trait Read: Sized {
    /// The value of the option; where it is of the wrong type, what it should be.
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch>;
}

fn expected<T>(what: &str) -> Result<T, Mismatch> {
    Err(Mismatch::Expected(what.to_owned()))
}

impl Read for f64 {
    fn read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) => Ok(*value as f64),
            Value::Number(value) => Ok(*value),
            _ => expected("a number"),
        }
    }
}

impl Read for i64 {
    fn read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) => Ok(*value),
            _ => expected("an integer"),
        }
    }
}

impl Read for usize {
    fn read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) if *value >= 0 => Ok(*value as usize),
            _ => expected("an integer of at least 0"),
        }
    }
}

impl Read for bool {
    fn read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Bool(value) => Ok(*value),
            _ => expected("true or false"),
        }
    }
}

impl Read for Option<i64> {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Null => Ok(None),
            Value::Text(none) if none == "none" => Ok(None),
            _ => i64::read(value, place).map(Some).or_else(|_| expected("an integer or \"none\"")),
        }
    }
}

impl Read for Vec<i64> {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        let Value::List(values) = value else { return expected("a list of integers") };
        let integers = values.iter().map(|value| i64::read(value, place));
        integers.collect::<Result<_, _>>().or_else(|_| expected("a list of integers"))
    }
}

impl Read for Tensor {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        const LISTS: &str = "a list of numbers, or such lists of one length nested in lists";
        let Value::List(_) = value else { return expected(LISTS) };
        let (mut shape, mut numbers, mut booleans) = (Vec::new(), Vec::new(), 0);
        if !flatten(value, 0, &mut shape, &mut numbers, &mut booleans) || ![0, numbers.len()].contains(&booleans) {
            return expected(LISTS);
        }
        let kind = if booleans > 0 { Kind::Bool } else { place.kind };
        let tensor = Tensor::f_from_slice(&numbers)
            .and_then(|flat| flat.f_reshape(&shape))
            .and_then(|tensor| tensor.f_to_kind(kind))
            .and_then(|tensor| tensor.f_to_device(place.device));
        tensor.map_err(|error| Mismatch::Inside(crate::LossError::from(error).to_string()))
    }
}

/// Adds the numbers of nested lists, and counts the booleans among them; false where the lists are no tensor.
fn flatten(value: &Value, depth: usize, shape: &mut Vec<i64>, numbers: &mut Vec<f64>, booleans: &mut usize) -> bool {
    let number = match value {
        Value::List(values) => {
            let size = values.len() as i64;
            if depth == shape.len() && numbers.is_empty() {
                shape.push(size);
            }
            return shape.get(depth) == Some(&size)
                && values.iter().all(|value| flatten(value, depth + 1, shape, numbers, booleans));
        }
        Value::Integer(value) => *value as f64,
        Value::Number(value) => *value,
        Value::Bool(value) => {
            *booleans += 1;
            f64::from(*value)
        }
        _ => return false,
    };
    numbers.push(number);
    depth == shape.len()
}

impl Read for Vec<f64> {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        let Value::List(values) = value else { return expected("a list of numbers") };
        let numbers = values.iter().map(|value| f64::read(value, place));
        numbers.collect::<Result<_, _>>().or_else(|_| expected("a list of numbers"))
    }
}

impl Read for Quantiles {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::List(_) => Vec::read(value, place).map(Quantiles::Many),
            _ => f64::read(value, place).map(Quantiles::One).or_else(|_| expected("a number or a list of numbers")),
        }
    }
}

impl Read for FocalAlpha {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Null => Ok(FocalAlpha::None),
            Value::Text(none) if none == "none" => Ok(FocalAlpha::None),
            Value::List(_) => Ok(FocalAlpha::Classes(Tensor::read(value, place)?)),
            _ => match f64::read(value, place) {
                Ok(balance) => Ok(FocalAlpha::Balance(balance)),
                Err(_) => expected("a number, a list of one for each class, or \"none\""),
            },
        }
    }
}

impl Read for Divisor {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Text(text) if text == "losses" => Ok(Divisor::Losses),
            Value::Text(text) if text == "positives" => Ok(Divisor::Positives),
            Value::Text(text) if text == "weights" => Ok(Divisor::Weights),
            _ => match f64::read(value, place) {
                Ok(number) => Ok(Divisor::Number(number)),
                Err(_) => expected("\"losses\", \"positives\", \"weights\" or a number"),
            },
        }
    }
}

impl Read for LovaszClasses {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Text(text) if text == "present" => Ok(LovaszClasses::Present),
            Value::Text(text) if text == "all" => Ok(LovaszClasses::All),
            _ => match Vec::read(value, place) {
                Ok(classes) => Ok(LovaszClasses::Only(classes)),
                Err(_) => expected("\"present\", \"all\" or a list of integers"),
            },
        }
    }
}

impl Read for EmbeddingDistance {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        const EXPECTED: &str = "one of \"lp\", \"cosine\", \"dot_product\", \"signal_to_noise\", or fields with one as \
                                measure, and normalize_embeddings, p, power";
        let (measure, fields) = match value {
            Value::Map(fields) => (fields.iter().find(|(field, _)| field == "measure").map(|(_, of)| of), &fields[..]),
            _ => (Some(value), &[][..]),
        };
        let Some(Value::Text(measure)) = measure else { return expected(EXPECTED) };
        let mut distance = match measure.as_str() {
            "lp" => EmbeddingDistance::lp(),
            "cosine" => EmbeddingDistance::cosine(),
            "dot_product" => EmbeddingDistance::dot_product(),
            "signal_to_noise" => EmbeddingDistance::signal_to_noise(),
            _ => return expected(EXPECTED),
        };
        for (field, value) in fields {
            let wrong = |_| Mismatch::Expected(EXPECTED.to_owned());
            distance = match field.as_str() {
                "measure" => distance,
                "normalize_embeddings" => distance.normalize_embeddings(bool::read(value, place).map_err(wrong)?),
                "p" => distance.p(f64::read(value, place).map_err(wrong)?),
                "power" => distance.power(f64::read(value, place).map_err(wrong)?),
                _ => return expected(EXPECTED),
            };
        }
        Ok(distance)
    }
}

impl Read for EmbeddingReduction {
    fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        const EXPECTED: &str = "one of \"none\", \"mean\", \"mean_non_zero\", \"sum\", \"per_anchor\", the fields low and high of a threshold, or \
             per_anchor with one of these";
        const NO_THRESHOLD: [(&str, EmbeddingReduction); 5] = [
            ("per_anchor", EmbeddingReduction::PerAnchor(AnchorReduction::Mean)),
            ("none", EmbeddingReduction::None),
            ("mean", EmbeddingReduction::Mean),
            ("mean_non_zero", EmbeddingReduction::MeanNonZero),
            ("sum", EmbeddingReduction::Sum),
        ];
        let Value::Map(fields) = value else {
            return one_word(value, &NO_THRESHOLD).or_else(|_| expected(EXPECTED));
        };
        if let [(field, of_anchors)] = &fields[..]
            && field == "per_anchor"
        {
            return Ok(EmbeddingReduction::PerAnchor(match Self::read(of_anchors, place)? {
                EmbeddingReduction::None => AnchorReduction::None,
                EmbeddingReduction::Mean => AnchorReduction::Mean,
                EmbeddingReduction::MeanNonZero => AnchorReduction::MeanNonZero,
                EmbeddingReduction::Sum => AnchorReduction::Sum,
                EmbeddingReduction::Threshold { low, high } => AnchorReduction::Threshold { low, high },
                EmbeddingReduction::PerAnchor(_) => return expected(EXPECTED),
            }));
        }
        let (mut low, mut high) = (None, None);
        for (field, value) in fields {
            let bound = match field.as_str() {
                "low" => &mut low,
                "high" => &mut high,
                _ => return expected(EXPECTED),
            };
            *bound = Some(f64::read(value, place).or_else(|_| expected(EXPECTED))?);
        }
        Ok(EmbeddingReduction::Threshold { low, high })
    }
}

/// The option is one of several words.
fn one_word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, Mismatch> {
    if let Value::Text(text) = value
        && let Some((_, choice)) = words.iter().find(|(word, _)| word == text)
    {
        return Ok(*choice);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    expected(&format!("one of {}", all.join(", ")))
}

/// The words of enums: the names of the variants in snake case.
macro_rules! words {
    ($($enum:ident { $($word:literal => $variant:ident),+ $(,)? })+) => {
        $(
            impl Read for $enum {
                fn read(value: &Value, _: Place) -> Result<Self, Mismatch> {
                    one_word(value, &[$(($word, $enum::$variant)),+])
                }
            }
        )+

        #[cfg(test)]
        pub(super) const WORDS: &[(&str, &str)] = &[$($(($word, stringify!($variant))),+),+];
    };
}

words! {
    WhenEmpty { "nan" => Nan, "zero" => Zero, "error" => Error }
    Reduction { "none" => None, "mean" => Mean, "sum" => Sum }
    KlDivReduction { "none" => None, "mean" => Mean, "batch_mean" => BatchMean, "sum" => Sum }
    MultiLabelReduction { "none" => None, "mean" => Mean, "batch_mean" => BatchMean, "sum" => Sum }
    InvalidValues { "error" => Error, "nan" => Nan }
    MeanOver { "counted" => Counted, "all" => All }
    HingeTargets { "detect" => Detect, "signs" => Signs, "binary" => Binary }
    FocalNormalization { "none" => None, "all" => All, "per_class" => PerClass }
    FocalSoftTargets {
        "expectation" => Expectation, "terms" => Terms, "margin" => Margin, "likelihood" => Likelihood,
    }
    Activation { "none" => None, "sigmoid" => Sigmoid, "softmax" => Softmax }
    Grouping { "sample_and_class" => SampleAndClass, "class" => Class, "sample" => Sample, "all" => All }
    OverlapMeasure { "product" => Product, "squared" => Squared, "minimum" => Minimum }
    NoBoundary { "zero" => Zero, "diagonal" => Diagonal }
    EmptyMask { "formula" => Formula, "zero" => Zero, "skip" => Skip }
    WeightedMean { "count" => Count, "weight" => Weight }
    IgnoreScope { "element" => Element, "pixel" => Pixel }
    FocalPower { "region" => Region, "reduced" => Reduced }
    TripletMining { "all" => All, "semi_hard" => SemiHard, "hard" => Hard, "batch_hard" => BatchHard }
    CharbonnierMinimum { "zero" => Zero, "eps" => Eps }
    PsnrScope { "batch" => Batch, "sample" => Sample }
    SsimWindow { "gaussian" => Gaussian, "uniform" => Uniform }
    SsimPadding { "valid" => Valid, "reflect" => Reflect }
    SsimForm { "complement" => Complement, "dissimilarity" => Dissimilarity }
    MsSsimScope { "sample" => Sample, "channel" => Channel }
    SsimScope { "pixel" => Pixel, "sample" => Sample }
    VolumeWeight { "square" => Square, "simple" => Simple, "uniform" => Uniform }
}

/// Enums of losses: the data are a description of one of them.
macro_rules! choices {
    ($($enum:ident { $($loss:ident),+ })+) => {
        $(
            impl Read for $enum {
                fn read(value: &Value, place: Place) -> Result<Self, Mismatch> {
                    let (name, fields) = f_one_of(value, &[$($loss::NAMES),+]).map_err(Mismatch::Inside)?;
                    $(
                        if name == $loss::NAMES[0] {
                            return Ok($loss::f_read(fields, place).map_err(Mismatch::Inside)?.into());
                        }
                    )+
                    Err(Mismatch::Inside(format!("there is no loss {name}")))
                }
            }
        )+
    };
}

choices! {
    Overlap { DiceLoss, JaccardLoss, TverskyLoss, FocalTverskyLoss, GeneralizedDiceLoss }
    CrossEntropyPart { CrossEntropyLoss, BceWithLogitsLoss }
    FocalPart { SoftmaxFocalLoss, SigmoidFocalLoss, OneVsRestFocalLoss }
}
