//! The arguments of one call, by name, as adapters take them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use tch_losses::{LossError, Reduction};

use crate::case::Value;

/// Why a case gave no outputs.
#[derive(Debug)]
pub enum EvalError {
    /// The call is rejected, as a user of the crate would see it: by a `LossError`, or by the types of its interface.
    Rejected(String),
    /// The crate does not offer this reference or option.
    Unsupported(String),
}

impl From<LossError> for EvalError {
    fn from(error: LossError) -> Self {
        EvalError::Rejected(error.to_string())
    }
}

impl From<tch::TchError> for EvalError {
    fn from(error: tch::TchError) -> Self {
        LossError::from(error).into()
    }
}

/// An argument with its tensors in place.
#[derive(Debug)]
pub enum Argument {
    /// A tensor.
    Tensor(Tensor),
    /// Several of them.
    Tensors(Vec<Tensor>),
    /// Anything else.
    Plain(Value),
}

/// One number, or one for each of several things.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    /// A number.
    One(f64),
    /// A list.
    Many(Vec<f64>),
}

/// The arguments of one call by parameter name. Getters take them out, so that [`finish`](Self::finish) notices one
/// that the adapter does not know.
#[derive(Debug, Default)]
pub struct Arguments {
    values: BTreeMap<String, Argument>,
    /// Parameters by state-dict name.
    pub state: BTreeMap<String, Tensor>,
    /// The device of the call.
    pub device: Option<Device>,
}

impl Arguments {
    /// Adds an argument.
    pub fn insert(&mut self, name: &str, argument: Argument) {
        self.values.insert(name.to_owned(), argument);
    }

    /// Takes an argument out; Python's `None` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Argument> {
        self.values.remove(name).filter(|argument| !matches!(argument, Argument::Plain(Value::Null)))
    }

    /// Whether the argument was given as Python's `None`.
    pub fn is_none(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Argument::Plain(Value::Null)))
    }

    /// The reduction of a library that has no default for `None`.
    pub fn reduction_by_name(&mut self) -> Result<Reduction, EvalError> {
        if self.is_none("reduction") {
            return Err(EvalError::Rejected("there is no reduction None".into()));
        }
        self.reduction()
    }

    /// Whether the argument was given.
    pub fn contains(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A tensor that the call needs.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor, EvalError> {
        self.optional_tensor(name)?.ok_or_else(|| EvalError::Rejected(format!("argument {name} is missing")))
    }

    /// A tensor that may be absent.
    pub fn optional_tensor(&mut self, name: &str) -> Result<Option<Tensor>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Tensor(tensor)) => Ok(Some(tensor)),
            Some(other) => Err(wrong_type(name, "a tensor", &other)),
        }
    }

    /// Several tensors, which may be absent.
    pub fn optional_tensors(&mut self, name: &str) -> Result<Option<Vec<Tensor>>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Tensors(tensors)) => Ok(Some(tensors)),
            Some(other) => Err(wrong_type(name, "a list of tensors", &other)),
        }
    }

    /// A number.
    pub fn number(&mut self, name: &str, default: f64) -> Result<f64, EvalError> {
        match self.take(name) {
            None => Ok(default),
            Some(Argument::Plain(Value::Int(integer))) => Ok(integer as f64),
            Some(Argument::Plain(Value::Float(number))) => Ok(number),
            Some(other) => Err(wrong_type(name, "a number", &other)),
        }
    }

    /// A number where Python's `None` has a meaning of its own: `default` is for an argument that was not given.
    pub fn number_or_none(&mut self, name: &str, default: Option<f64>) -> Result<Option<f64>, EvalError> {
        if !self.contains(name) {
            return Ok(default);
        }
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Plain(Value::Int(integer))) => Ok(Some(integer as f64)),
            Some(Argument::Plain(Value::Float(number))) => Ok(Some(number)),
            Some(other) => Err(wrong_type(name, "a number", &other)),
        }
    }

    /// A number or a list of numbers, also as a tensor, which may be absent.
    pub fn numbers(&mut self, name: &str) -> Result<Option<Numbers>, EvalError> {
        if let Some(Argument::Tensor(tensor)) = self.values.get(name) {
            let numbers = Vec::<f64>::try_from(tensor.f_detach()?.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
            let numbers = if tensor.dim() == 0 { Numbers::One(numbers[0]) } else { Numbers::Many(numbers) };
            let _ = self.take(name);
            return Ok(Some(numbers));
        }
        if let Some(Argument::Plain(Value::List(_))) = self.values.get(name) {
            let Some(Argument::Plain(Value::List(items))) = self.take(name) else { return Ok(None) };
            let number = |item| match item {
                Value::Int(integer) => Ok(integer as f64),
                Value::Float(number) => Ok(number),
                other => Err(wrong_type(name, "a list of numbers", &Argument::Plain(other))),
            };
            return Ok(Some(Numbers::Many(items.into_iter().map(number).collect::<Result<_, _>>()?)));
        }
        Ok(self.number_or_none(name, None)?.map(Numbers::One))
    }

    /// An integer.
    pub fn integer(&mut self, name: &str, default: i64) -> Result<i64, EvalError> {
        Ok(self.optional_integer(name)?.unwrap_or(default))
    }

    /// An integer that may be absent.
    pub fn optional_integer(&mut self, name: &str) -> Result<Option<i64>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Plain(Value::Int(integer))) => Ok(Some(integer)),
            Some(other) => Err(wrong_type(name, "an integer", &other)),
        }
    }

    /// An integer whose `None` is a value of its own, other than the default.
    pub fn integer_or_none(&mut self, name: &str, default: Option<i64>) -> Result<Option<i64>, EvalError> {
        if self.contains(name) { self.optional_integer(name) } else { Ok(default) }
    }

    /// A boolean.
    pub fn boolean(&mut self, name: &str, default: bool) -> Result<bool, EvalError> {
        Ok(self.optional_boolean(name)?.unwrap_or(default))
    }

    fn optional_boolean(&mut self, name: &str) -> Result<Option<bool>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Plain(Value::Bool(flag))) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(name, "a boolean", &other)),
        }
    }

    /// A list of integers, also where it comes as a tensor.
    pub fn integers(&mut self, name: &str) -> Result<Vec<i64>, EvalError> {
        match self.take(name) {
            Some(Argument::Plain(Value::Int(integer))) => Ok(vec![integer]),
            Some(Argument::Plain(Value::List(items))) => {
                let integer = |item: Value| match item {
                    Value::Int(integer) => Ok(integer),
                    other => Err(wrong_type(name, "a list of integers", &Argument::Plain(other))),
                };
                items.into_iter().map(integer).collect()
            }
            Some(Argument::Tensor(tensor)) if is_integer(&tensor) => {
                Ok(Vec::<i64>::try_from(tensor.f_flatten(0, -1)?.f_to_kind(tch::Kind::Int64)?)?)
            }
            Some(other) => Err(wrong_type(name, "a list of integers", &other)),
            None => Err(EvalError::Rejected(format!("argument {name} is missing"))),
        }
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Plain(Value::Text(text))) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    /// A dtype that may be absent.
    pub fn kind(&mut self, name: &str) -> Result<Option<Kind>, EvalError> {
        match self.take(name) {
            None => Ok(None),
            Some(Argument::Plain(Value::Object(path, None))) => match path.as_str() {
                "torch.float64" => Ok(Some(Kind::Double)),
                "torch.float32" => Ok(Some(Kind::Float)),
                "torch.float16" => Ok(Some(Kind::Half)),
                "torch.bfloat16" => Ok(Some(Kind::BFloat16)),
                other => Err(EvalError::Unsupported(format!("{name} {other}"))),
            },
            Some(other) => Err(wrong_type(name, "a dtype", &other)),
        }
    }

    /// The reduction by its name, PyTorch's deprecated `size_average` and `reduce` included.
    pub fn reduction_name(&mut self) -> Result<String, EvalError> {
        let size_average = self.optional_boolean("size_average")?;
        let reduce = self.optional_boolean("reduce")?;
        let name = self.text("reduction")?.unwrap_or_else(|| "mean".into());
        if size_average.is_none() && reduce.is_none() {
            return Ok(name);
        }
        Ok(match (size_average.unwrap_or(true), reduce.unwrap_or(true)) {
            (true, true) => "mean".into(),
            (false, true) => "sum".into(),
            (_, false) => "none".into(),
        })
    }

    /// The reduction.
    pub fn reduction(&mut self) -> Result<Reduction, EvalError> {
        match self.reduction_name()?.as_str() {
            "none" => Ok(Reduction::None),
            "mean" => Ok(Reduction::Mean),
            "sum" => Ok(Reduction::Sum),
            other => Err(EvalError::Rejected(format!("there is no reduction {other:?}"))),
        }
    }

    /// Fails where an argument was not taken.
    pub fn finish(&self) -> Result<(), EvalError> {
        let left = self.values.iter().find(|(_, argument)| !matches!(argument, Argument::Plain(Value::Null)));
        match left {
            Some((name, _)) => Err(EvalError::Unsupported(format!("option {name}"))),
            None => Ok(()),
        }
    }
}

fn is_integer(tensor: &Tensor) -> bool {
    use tch::Kind::{Int, Int8, Int16, Int64, Uint8};
    matches!(tensor.kind(), Uint8 | Int8 | Int16 | Int | Int64)
}

fn wrong_type(name: &str, expected: &str, actual: &Argument) -> EvalError {
    let actual = match actual {
        Argument::Tensor(tensor) => format!("a tensor of shape {:?}", tensor.size()),
        Argument::Tensors(tensors) => format!("a list of {} tensors", tensors.len()),
        Argument::Plain(value) => format!("{value:?}"),
    };
    EvalError::Rejected(format!("argument {name} is {actual}; its type is {expected}"))
}
