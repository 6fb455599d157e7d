//! Options that are neither numbers nor words, from data and into data.

use tch::Tensor;

use crate::description::{Mismatch, OptionValue, Place, Problem, Value, expected, none_is_null};
// Those of the families that are built.
use crate::*;

none_is_null!(WhenEmpty);
#[cfg(feature = "segmentation")]
none_is_null!(Activation);

#[cfg(feature = "regression")]
impl OptionValue for Quantiles {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::List(_) => Vec::f_read(value, place).map(Quantiles::Many),
            _ => f64::f_read(value, place).map(Quantiles::One).or_else(|_| expected("a number or a list of numbers")),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        match self {
            Quantiles::One(quantile) => quantile.f_write(),
            Quantiles::Many(quantiles) => quantiles.f_write(),
        }
    }
}

#[cfg(feature = "classification")]
impl OptionValue for FocalAlpha {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Null => Ok(FocalAlpha::None),
            Value::Text(none) if none == "none" => Ok(FocalAlpha::None),
            Value::List(_) => Ok(FocalAlpha::Classes(Tensor::f_read(value, place)?)),
            _ => match f64::f_read(value, place) {
                Ok(balance) => Ok(FocalAlpha::Balance(balance)),
                Err(_) => expected("a number, a list of one for each class, or \"none\""),
            },
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        match self {
            FocalAlpha::None => Ok(Value::Text("none".into())),
            FocalAlpha::Balance(balance) => balance.f_write(),
            FocalAlpha::Classes(classes) => classes.f_write(),
        }
    }
}

#[cfg(any(feature = "classification", feature = "detection"))]
impl OptionValue for Divisor {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Text(text) if text == "losses" => Ok(Divisor::Losses),
            Value::Text(text) if text == "positives" => Ok(Divisor::Positives),
            Value::Text(text) if text == "weights" => Ok(Divisor::Weights),
            _ => match f64::f_read(value, place) {
                Ok(number) => Ok(Divisor::Number(number)),
                Err(_) => expected("\"losses\", \"positives\", \"weights\" or a number"),
            },
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        Ok(match self {
            Divisor::Losses => Value::Text("losses".into()),
            Divisor::Positives => Value::Text("positives".into()),
            Divisor::Weights => Value::Text("weights".into()),
            Divisor::Number(number) => Value::Number(*number),
        })
    }
}

#[cfg(feature = "segmentation")]
impl OptionValue for LovaszClasses {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Text(text) if text == "present" => Ok(LovaszClasses::Present),
            Value::Text(text) if text == "all" => Ok(LovaszClasses::All),
            _ => match Vec::f_read(value, place) {
                Ok(classes) => Ok(LovaszClasses::Only(classes)),
                Err(_) => expected("\"present\", \"all\" or a list of integers"),
            },
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        match self {
            LovaszClasses::Present => Ok(Value::Text("present".into())),
            LovaszClasses::All => Ok(Value::Text("all".into())),
            LovaszClasses::Only(classes) => classes.f_write(),
        }
    }
}

#[cfg(feature = "metric")]
impl OptionValue for EmbeddingDistance {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
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
                "normalize_embeddings" => distance.normalize_embeddings(bool::f_read(value, place).map_err(wrong)?),
                "p" => distance.p(f64::f_read(value, place).map_err(wrong)?),
                "power" => distance.power(f64::f_read(value, place).map_err(wrong)?),
                _ => return expected(EXPECTED),
            };
        }
        Ok(distance)
    }

    fn f_write(&self) -> Result<Value, Problem> {
        let (measure, normalize_embeddings, p, power) = self.parts();
        let measure = Value::Text(measure.into());
        let mut fields = vec![("measure".to_owned(), measure.clone())];
        let mut add = |name: &str, differs: bool, value: Value| {
            fields.extend(differs.then(|| (name.to_owned(), value)));
        };
        add("normalize_embeddings", !normalize_embeddings, Value::Bool(normalize_embeddings));
        add("p", p != 2.0, Value::Number(p));
        add("power", power != 1.0, Value::Number(power));
        Ok(if fields.len() == 1 { measure } else { Value::Map(fields) })
    }
}

/// The reductions that are one word.
#[cfg(feature = "metric")]
const NO_THRESHOLD: [(&str, EmbeddingReduction); 5] = [
    ("per_anchor", EmbeddingReduction::PerAnchor(AnchorReduction::Mean)),
    ("none", EmbeddingReduction::None),
    ("mean", EmbeddingReduction::Mean),
    ("mean_non_zero", EmbeddingReduction::MeanNonZero),
    ("sum", EmbeddingReduction::Sum),
];

#[cfg(feature = "metric")]
impl OptionValue for EmbeddingReduction {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        const EXPECTED: &str = "one of \"none\", \"mean\", \"mean_non_zero\", \"sum\", \"per_anchor\", the fields low and \
                                high of a threshold, or per_anchor with one of these";
        let Value::Map(fields) = value else {
            let word = NO_THRESHOLD.iter().find(|(word, _)| *value == Value::Text((*word).into()));
            return word.map_or_else(|| expected(EXPECTED), |(_, reduction)| Ok(*reduction));
        };
        if let [(field, of_anchors)] = &fields[..]
            && field == "per_anchor"
        {
            return Ok(EmbeddingReduction::PerAnchor(match Self::f_read(of_anchors, place)? {
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
            *bound = Some(f64::f_read(value, place).or_else(|_| expected(EXPECTED))?);
        }
        Ok(EmbeddingReduction::Threshold { low, high })
    }

    fn f_write(&self) -> Result<Value, Problem> {
        if let Some((word, _)) = NO_THRESHOLD.iter().find(|(_, reduction)| reduction == self) {
            return Ok(Value::Text((*word).into()));
        }
        let field = |name: &str, value: Value| (name.to_owned(), value);
        Ok(Value::Map(match *self {
            EmbeddingReduction::Threshold { low, high } => {
                let bounds = [("low", low), ("high", high)].into_iter();
                bounds.filter_map(|(name, bound)| Some(field(name, Value::Number(bound?)))).collect()
            }
            EmbeddingReduction::PerAnchor(of_anchors) => {
                vec![field("per_anchor", EmbeddingReduction::from(of_anchors).f_write()?)]
            }
            _ => vec![],
        }))
    }
}
