//! The values of options, from data and into data.

use std::fmt;

use serde::de::{self, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, Serialize, forward_to_deserialize_any};
use tch::{Device, Kind, Tensor};

use super::value::Value;
use crate::LossError;

/// Why data describe no loss, or why a loss cannot be described: one sentence.
pub(crate) type Problem = String;

/// Of which kind and where the tensors among the options are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) device: Device,
    /// None for the kind that the data say.
    pub(crate) kind: Option<Kind>,
}

impl Place {
    /// Where options are read first.
    pub(crate) const DEFAULT: Place = Place { device: Device::Cpu, kind: None };
}

/// Why a value is none for an option.
#[derive(Debug)]
pub(crate) enum Mismatch {
    /// What it should be.
    Expected(String),
    /// What is wrong inside of it.
    Inside(Problem),
}

/// A type of options.
pub(crate) trait OptionValue: Sized {
    /// The value of the option; where it is of the wrong type, what it should be.
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch>;

    /// The value as data, which is read as the same again.
    fn f_write(&self) -> Result<Value, Problem>;
}

pub(crate) fn expected<T>(what: &str) -> Result<T, Mismatch> {
    Err(Mismatch::Expected(what.to_owned()))
}

impl OptionValue for f64 {
    fn f_read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) => Ok(*value as f64),
            Value::Number(value) => Ok(*value),
            // JSON has no other words for them.
            Value::Text(word) if ["inf", "-inf", "NaN"].contains(&word.as_str()) => {
                word.parse().or_else(|_| expected("a number"))
            }
            _ => expected("a number"),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        Ok(if self.is_finite() { Value::Number(*self) } else { Value::Text(self.to_string()) })
    }
}

impl OptionValue for i64 {
    fn f_read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) => Ok(*value),
            _ => expected("an integer"),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        Ok(Value::Integer(*self))
    }
}

impl OptionValue for usize {
    fn f_read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Integer(value) if *value >= 0 => Ok(*value as usize),
            _ => expected("an integer of at least 0"),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        i64::try_from(*self).map(Value::Integer).map_err(|_| format!("{self} is too great for an integer in data"))
    }
}

impl OptionValue for bool {
    fn f_read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Bool(value) => Ok(*value),
            _ => expected("true or false"),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        Ok(Value::Bool(*self))
    }
}

impl OptionValue for Option<i64> {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        match value {
            Value::Null => Ok(None),
            Value::Text(none) if none == "none" => Ok(None),
            _ => i64::f_read(value, place).map(Some).or_else(|_| expected("an integer or \"none\"")),
        }
    }

    fn f_write(&self) -> Result<Value, Problem> {
        Ok(self.map_or_else(|| Value::Text("none".into()), Value::Integer))
    }
}

macro_rules! lists {
    ($($type:ty: $expected:literal),+) => {
        $(
            impl OptionValue for Vec<$type> {
                fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
                    let Value::List(values) = value else { return expected($expected) };
                    let numbers = values.iter().map(|value| <$type>::f_read(value, place));
                    numbers.collect::<Result<_, _>>().or_else(|_| expected($expected))
                }

                fn f_write(&self) -> Result<Value, Problem> {
                    Ok(Value::List(self.iter().map(OptionValue::f_write).collect::<Result<_, _>>()?))
                }
            }
        )+
    };
}

lists!(i64: "a list of integers", f64: "a list of numbers");

/// Options that are none by default, for which null stands.
macro_rules! none_is_null {
    ($($type:ty),+) => {
        $(
            impl $crate::description::OptionValue for Option<$type> {
                fn f_read(
                    value: &$crate::description::Value,
                    place: $crate::description::Place,
                ) -> Result<Self, $crate::description::Mismatch> {
                    match value {
                        $crate::description::Value::Null => Ok(None),
                        _ => $crate::description::OptionValue::f_read(value, place).map(Some),
                    }
                }

                fn f_write(&self) -> Result<$crate::description::Value, $crate::description::Problem> {
                    self.as_ref().map_or(Ok($crate::description::Value::Null), $crate::description::OptionValue::f_write)
                }
            }
        )+
    };
}
pub(crate) use none_is_null;

none_is_null!(f64, usize, Tensor, Vec<i64>, Kind);

impl OptionValue for Kind {
    fn f_read(value: &Value, _: Place) -> Result<Self, Mismatch> {
        let kind = KINDS.iter().find(|(name, _)| *value == Value::Text((*name).into()));
        kind.map_or_else(
            || expected("one of \"float\", \"double\", \"half\", \"bfloat16\", \"bool\""),
            |(_, kind)| Ok(*kind),
        )
    }

    fn f_write(&self) -> Result<Value, Problem> {
        let name = KINDS.iter().find(|(_, kind)| kind == self);
        name.map(|(name, _)| Value::Text((*name).into())).ok_or_else(|| format!("{self:?} has no name in data"))
    }
}

/// The fields of a tensor that is neither `Float` nor Boolean, or a single number.
const TENSOR: [&str; 2] = ["kind", "values"];
/// The kinds that it can have.
const KINDS: [(&str, Kind); 5] = [
    ("float", Kind::Float),
    ("double", Kind::Double),
    ("half", Kind::Half),
    ("bfloat16", Kind::BFloat16),
    ("bool", Kind::Bool),
];

impl OptionValue for Tensor {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        const LISTS: &str = "a list of numbers, or such lists of one length nested in lists";
        let (kind, value) = match (kind_and_values(value), value) {
            (Some(said), _) => said,
            (None, Value::List(_)) => (Kind::Float, value),
            _ => return expected(LISTS),
        };
        let (mut shape, mut numbers, mut booleans) = (Vec::new(), Vec::new(), 0);
        if !flatten(value, 0, &mut shape, &mut numbers, &mut booleans) || ![0, numbers.len()].contains(&booleans) {
            return expected(LISTS);
        }
        let kind = if booleans > 0 { Kind::Bool } else { place.kind.unwrap_or(kind) };
        let tensor = Tensor::f_from_slice(&numbers)
            .and_then(|flat| flat.f_reshape(&shape))
            .and_then(|tensor| tensor.f_to_kind(kind))
            .and_then(|tensor| tensor.f_to_device(place.device));
        tensor.map_err(|error| Mismatch::Inside(LossError::from(error).to_string()))
    }

    fn f_write(&self) -> Result<Value, Problem> {
        let f_said = || {
            let numbers = self.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?.f_reshape(-1)?;
            Ok::<_, LossError>(Vec::<f64>::try_from(numbers)?)
        };
        let kind = self.f_kind().map_err(|error| LossError::from(error).to_string())?;
        let Some((name, _)) = KINDS.iter().find(|(_, known)| *known == kind) else {
            return Err(format!("a tensor of kind {kind:?} cannot be written as data"));
        };
        let numbers = f_said().map_err(|error| error.to_string())?;
        let value = |number: f64| match kind {
            Kind::Bool => Value::Bool(number != 0.0),
            _ if !number.is_finite() => Value::Text(number.to_string()),
            // 0.1 and not 0.10000000149, which is the same in single precision.
            Kind::Float => Value::Number((number as f32).to_string().parse().unwrap_or(number)),
            _ => Value::Number(number),
        };
        let values = nested(&self.size(), &mut numbers.into_iter().map(value));
        if self.dim() > 0 && [Kind::Float, Kind::Bool].contains(&kind) {
            return Ok(values);
        }
        Ok(Value::Map(vec![(TENSOR[0].into(), Value::Text((*name).into())), (TENSOR[1].into(), values)]))
    }
}

/// What the fields of a tensor say.
fn kind_and_values(value: &Value) -> Option<(Kind, &Value)> {
    let Value::Map(fields) = value else { return None };
    let field = |name| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
    let (Some(Value::Text(kind)), Some(values), 2) = (field(TENSOR[0]), field(TENSOR[1]), fields.len()) else {
        return None;
    };
    KINDS.iter().find(|(name, _)| name == kind).map(|(_, kind)| (*kind, values))
}

/// The numbers of a tensor of this shape as lists in lists.
fn nested(shape: &[i64], numbers: &mut impl Iterator<Item = Value>) -> Value {
    let Some((size, rest)) = shape.split_first() else { return numbers.next().unwrap_or(Value::Null) };
    Value::List((0..*size).map(|_| nested(rest, numbers)).collect())
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
        Value::Bool(value) => {
            *booleans += 1;
            f64::from(*value)
        }
        _ => match f64::f_read(value, Place::DEFAULT) {
            Ok(number) => number,
            Err(_) => return false,
        },
    };
    numbers.push(number);
    depth == shape.len()
}

/// A value that is to be one of several words.
struct Word<'a>(&'a Value);

impl<'de> Deserializer<'de> for Word<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Mismatch> {
        expected("a word")
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Text(text) if words.contains(&text.as_str()) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            _ => {
                let all: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                expected(&format!("one of {}", all.join(", ")))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Expected(what) => write!(f, "expected {what}"),
            Mismatch::Inside(problem) => f.write_str(problem),
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Mismatch::Inside(message.to_string())
    }
}

/// An enum whose variants are words.
pub(crate) fn f_read_word<'de, T: Deserialize<'de>>(value: &Value) -> Result<T, Mismatch> {
    T::deserialize(Word(value))
}

/// The word of a variant.
pub(crate) fn f_write_word<T: Serialize>(variant: &T) -> Result<Value, Problem> {
    struct Shown<'a, T>(&'a T);
    impl<T: Serialize> fmt::Display for Shown<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.serialize(f)
        }
    }
    Ok(Value::Text(Shown(variant).to_string()))
}
