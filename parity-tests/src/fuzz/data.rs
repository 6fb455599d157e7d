//! Descriptions of losses: JSON, and the numbers that JSON does not have.

use std::fmt;

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// What a description may say.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A number, also NaN and the infinities.
    Number(f64),
    /// A word.
    Text(String),
    /// A list.
    List(Vec<Data>),
    /// Fields.
    Map(Vec<(String, Data)>),
}

impl Data {
    /// A word.
    pub fn text(text: impl Into<String>) -> Data {
        Data::Text(text.into())
    }

    /// A list of numbers.
    pub fn numbers(numbers: impl IntoIterator<Item = f64>) -> Data {
        Data::List(numbers.into_iter().map(Data::Number).collect())
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::Null => f.write_str("null"),
            Data::Bool(value) => write!(f, "{value}"),
            Data::Integer(value) => write!(f, "{value}"),
            Data::Number(value) => write!(f, "{value:?}"),
            Data::Text(value) => write!(f, "{value:?}"),
            Data::List(values) => {
                f.write_str("[")?;
                for (position, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if position > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Data::Map(fields) => {
                f.write_str("{")?;
                for (position, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name:?}: {value}", if position > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

impl<'de> IntoDeserializer<'de, Error> for &Data {
    type Deserializer = Data;

    fn into_deserializer(self) -> Data {
        self.clone()
    }
}

impl<'de> IntoDeserializer<'de, Error> for Data {
    type Deserializer = Data;

    fn into_deserializer(self) -> Data {
        self
    }
}

impl<'de> Deserializer<'de> for Data {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Data::Null => visitor.visit_unit(),
            Data::Bool(value) => visitor.visit_bool(value),
            Data::Integer(value) => visitor.visit_i64(value),
            Data::Number(value) => visitor.visit_f64(value),
            Data::Text(value) => visitor.visit_string(value),
            Data::List(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter())),
            Data::Map(fields) => visitor.visit_map(MapDeserializer::new(fields.into_iter())),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
