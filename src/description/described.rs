//! A loss from the fields that describe it, and into them.

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};

use super::names::{nearest, other, spelling};
use super::option_value::{Mismatch, OptionValue, Place, Problem};
use super::value::Value;
use crate::{Loss, LossError, check};

/// The field that names the loss.
pub(crate) const LOSS: &str = "loss";

/// The fields of a description that are not read yet, and the loss that reads them.
pub(crate) struct Fields<'a> {
    pub(crate) loss: &'static str,
    pub(crate) fields: Vec<&'a (String, Value)>,
}

impl<'a> Fields<'a> {
    /// The value of a field, where it is given.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a Value> {
        let index = self.fields.iter().position(|(field, _)| field == name)?;
        Some(&self.fields.remove(index).1)
    }

    /// Reads an option, where it is given.
    pub(crate) fn f_read<T: OptionValue>(&mut self, option: &str, into: &mut T, place: Place) -> Result<(), Problem> {
        let loss = self.loss;
        let Some(value) = self.take(option) else { return Ok(()) };
        *into = T::f_read(value, place).map_err(|mismatch| match mismatch {
            Mismatch::Expected(expected) => format!("loss {loss}: option {option} is {value}, expected {expected}"),
            Mismatch::Inside(problem) => format!("loss {loss}: option {option}: {problem}"),
        })?;
        Ok(())
    }

    /// All fields have been read.
    pub(crate) fn f_end(&self, options: &[&'static str]) -> Result<(), Problem> {
        let Some((name, _)) = self.fields.first() else { return Ok(()) };
        let names: Vec<&[&str]> = options.iter().map(std::slice::from_ref).collect();
        Err(format!("loss {} has no option {name}{}", self.loss, nearest(name, &names)))
    }
}

/// The name of the loss that `value` describes, which is one of several with their aliases, and the fields of its
/// options.
pub(crate) fn f_one_of<'a>(
    value: &'a Value,
    losses: &[&[&'static str]],
) -> Result<(&'static str, Fields<'a>), Problem> {
    let every = || losses.iter().map(|names| names[0]).collect::<Vec<_>>().join(", ");
    let (name, fields) = match value {
        Value::Text(name) => (name, vec![]),
        Value::Map(fields) => {
            let rest = fields.iter().filter(|(field, _)| field != LOSS).collect();
            match fields.iter().find(|(field, _)| field == LOSS) {
                Some((_, Value::Text(name))) => (name, rest),
                Some((_, other)) => return Err(format!("field {LOSS} is {other}, expected one of {}", every())),
                None => return Err(format!("field {LOSS} is missing, expected one of {}", every())),
            }
        }
        other => return Err(format!("{other} is no loss, expected one of {}, or fields with one as {LOSS}", every())),
    };
    let asked = spelling(name);
    if let Some(names) = losses.iter().find(|names| names.iter().any(|known| spelling(known) == asked)) {
        return Ok((names[0], Fields { loss: names[0], fields }));
    }
    if let Some(problem) = other(name) {
        return Err(problem);
    }
    Err(format!("there is no loss {name:?}{}", nearest(name, losses)))
}

/// What each option of a loss is as data, in their order.
pub(crate) type Written = Vec<Result<Value, Problem>>;

/// A loss whose options can be written as a table: `options!` makes it one.
pub(crate) trait Table: Default {
    /// The name of the loss in messages.
    const NAME: &'static str;
    /// The names of its options.
    const OPTIONS: &'static [&'static str];

    /// Reads those options that are given.
    fn f_read_options(&mut self, fields: &mut Fields, place: Place) -> Result<(), Problem>;

    /// Writes all options.
    fn f_write_options(&self) -> Written;

    /// Checks the options. A loss without a name in data checks them at its first call.
    fn f_check(&self) -> Result<(), LossError> {
        Ok(())
    }

    /// The loss of these options, which are all that is given.
    fn f_read(mut fields: Fields, place: Place) -> Result<Self, Problem> {
        let mut loss = check::with_documented_defaults(Self::default);
        loss.f_read_options(&mut fields, place)?;
        fields.f_end(Self::OPTIONS)?;
        loss.f_check().map_err(|error| format!("loss {}: {error}", Self::NAME))?;
        Ok(loss)
    }

    /// Those of its options that are not the default, and their values.
    fn f_write(&self) -> Result<Vec<(String, Value)>, Problem> {
        let default = check::with_documented_defaults(Self::default);
        let written = self.f_write_options().into_iter().zip(default.f_write_options());
        let mut fields = Vec::new();
        for (option, (value, default)) in Self::OPTIONS.iter().zip(written) {
            let value = value.map_err(|problem| format!("loss {}: option {option}: {problem}", Self::NAME))?;
            if default.as_ref() != Ok(&value) {
                fields.push(((*option).to_owned(), value));
            }
        }
        Ok(fields)
    }
}

/// A loss with a name in data, which [`AnyLoss`](crate::AnyLoss) knows.
pub(crate) trait Described: Loss + Table + Serialize + DeserializeOwned + 'static {
    /// Its name in data, and other ones.
    const NAMES: &'static [&'static str];

    /// The options that differ from the default, after the name of the loss.
    fn f_write_named(&self) -> Result<Value, Problem> {
        let mut fields = self.f_write()?;
        fields.insert(0, (LOSS.to_owned(), Value::Text(Self::NAMES[0].to_owned())));
        Ok(Value::Map(fields))
    }
}

/// Reads a loss of which data hold the options.
pub(crate) fn f_deserialize<'de, L: Table, D: Deserializer<'de>>(deserializer: D) -> Result<L, D::Error> {
    f_read_table(&Value::deserialize(deserializer)?, Place::DEFAULT).map_err(D::Error::custom)
}

/// Reads a loss from the table of its options.
pub(crate) fn f_read_table<L: Table>(value: &Value, place: Place) -> Result<L, Problem> {
    let loss = L::NAME;
    let Value::Map(fields) = value else { return Err(format!("{value} is no loss {loss}, expected its options")) };
    L::f_read(Fields { loss, fields: fields.iter().collect() }, place)
}

/// Writes those options of a loss that are not the default.
pub(crate) fn f_serialize<L: Table, S: Serializer>(loss: &L, serializer: S) -> Result<S::Ok, S::Error> {
    Value::Map(loss.f_write().map_err(S::Error::custom)?).serialize(serializer)
}
