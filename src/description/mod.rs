//! Losses and their options as data: what their descriptions are made of, whatever the loss. `AnyLoss` knows all
//! losses.

mod described;
mod names;
mod option_value;
mod value;

pub(crate) use described::{
    Described, Fields, LOSS, Table, Written, f_deserialize, f_one_of, f_read_table, f_serialize,
};
#[cfg(test)]
pub(crate) use names::{OTHERS, nearest, spelling};
pub(crate) use option_value::{
    Mismatch, OptionValue, Place, Problem, expected, f_read_word, f_write_word, none_is_null,
};
pub(crate) use value::Value;

#[cfg(all(test, feature = "full"))]
mod tests;
