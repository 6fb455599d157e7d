//! A loss is declared once: the fields of [`options!`] with their documentation and defaults are the source of its
//! struct, `new` and `Default`, its setters, `Clone`, moving its tensors, and its description in data.

/// Declares a loss by its options.
///
/// ```text
/// options! {
///     /// The page of the loss.
///     #[doc(alias = "cauchy_loss")]
///     pub struct CauchyLoss: "cauchy" | "LorentzianLoss";
///
///     /// The Cauchy loss with kornia's scale.
///     new {
///         /// c > 0, the scale of the differences: from about there on they count as outliers.
///         scale: f64 = 1.0,
///         ..elementwise,
///     }
/// }
/// ```
///
/// * The names are those of the loss in data, where the name of the type is one as well. A loss without names has none
///   in data; its options are still written and read there as a table.
/// * The first line of an option's documentation follows the word "Sets"; its default follows the last.
/// * The setter takes what the field holds, and what is in the `Option` where it is one. A word after `=>` chooses
///   another setter: `whole` takes the `Option`, `into` takes `impl Into` of the type, `slice` a slice for a vector,
///   `integers` one for a vector that may be none, and any other word names a macro that writes it, given the place of
///   the field.
/// * `..name` takes the options of a group, a macro that hands them to `@group`; they become fields of this loss, too.
///   `..name in place` takes them for the field `place`, which `inner` declares: a struct of a group of options.
/// * `inner` before the struct is for such a struct: it has no setters, and is not a loss.
///
/// Other traits, such as `Copy` and `PartialEq`, are derived by an attribute.
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $loss:ident $(: $name:literal $(| $alias:literal)*)?;

        $(#[$new:meta])*
        new { $($body:tt)* }
    ) => {
        $crate::options::options! { @read
            { loss { $(#[$meta])* } $vis $loss [$($name, $($alias,)*)?] { $(#[$new])* } }
            $($body)*
        }
    };
    (
        $(#[$meta:meta])*
        inner $vis:vis struct $loss:ident;

        $(#[$new:meta])*
        new { $($body:tt)* }
    ) => {
        $crate::options::options! { @read { inner { $(#[$meta])* } $vis $loss [] { $(#[$new])* } } $($body)* }
    };

    // The fields of the struct, and the options, each as a group in braces.
    (@read $header:tt
        $(inner $part_vis:vis $part:ident: $part_type:ty = $part_default:expr;)*
        $(
            #[doc = $doc:literal]
            $(#[$more:meta])*
            $field_vis:vis $field:ident: $($type:ident)::+ $(<$($inner:ty),+>)? = $default:expr $(=> $how:ident)?,
        )*
        $(..$group:ident $(in $place:ident)?,)*
    ) => {
        $crate::options::options! { @groups $header
            {
                $([$part_vis $part: $part_type = $part_default])*
                $([$field_vis $field: $($type)::+ $(<$($inner),+>)? = $default])*
            }
            {
                $({
                    [$($how)?] [] { #[doc = concat!(" Sets", $doc)] $(#[$more])* }
                    { #[doc = concat!(" `", stringify!($default), "` by default.")] }
                    $field: $($type)::+ $(<$($inner),+>)?
                })*
            }
            $(..$group $(in $place)?,)*
        }
    };
    (@groups { $kind:ident $($header:tt)* } $fields:tt $options:tt) => {
        $crate::options::options! { @$kind $($header)* $fields $options }
    };
    (@groups $header:tt $fields:tt $options:tt ..$group:ident $(in $place:ident)?, $($rest:tt)*) => {
        $group! { $header $fields $options [$($place)?] { $($rest)* } }
    };
    // The tokens of the type's path are matched one by one, because a path that a group hands over is no longer one
    // token tree.
    (@group $header:tt $fields:tt $options:tt $place:tt { $($rest:tt)* }) => {
        $crate::options::options! { @groups $header $fields $options $($rest)* }
    };
    (@group $header:tt $fields:tt $options:tt $place:tt $rest:tt
        #[doc = $doc:literal]
        $(#[$more:meta])*
        $field_vis:vis $field:ident: $($type:ident)::+ $(<$inner:ty>)? = $enum:ident::$variant:ident $(=> $how:ident)?,
        $($next:tt)*
    ) => {
        $crate::options::options! { @grouped $header $fields $options $place $rest
            [$($how)?] { #[doc = concat!(" Sets", $doc)] $(#[$more])* }
            { #[doc = concat!(" `", stringify!($enum), "::", stringify!($variant), "` by default.")] }
            [$field_vis] $field { $($type)::+ $(<$inner>)? } { $enum::$variant }
            $($next)*
        }
    };
    (@group $header:tt $fields:tt $options:tt $place:tt $rest:tt
        #[doc = $doc:literal]
        $(#[$more:meta])*
        $field_vis:vis $field:ident: $($type:ident)::+ $(<$inner:ty>)? = $default:expr $(=> $how:ident)?,
        $($next:tt)*
    ) => {
        $crate::options::options! { @grouped $header $fields $options $place $rest
            [$($how)?] { #[doc = concat!(" Sets", $doc)] $(#[$more])* }
            { #[doc = concat!(" `", stringify!($default), "` by default.")] }
            [$field_vis] $field { $($type)::+ $(<$inner>)? } { $default }
            $($next)*
        }
    };
    (@grouped $header:tt { $($fields:tt)* } { $($options:tt)* } [] $rest:tt
        $how:tt $docs:tt $default_doc:tt [$vis:vis] $field:ident { $($type:tt)* } { $default:expr }
        $($next:tt)*
    ) => {
        $crate::options::options! { @group $header
            { $($fields)* [$vis $field: $($type)* = $default] }
            { $($options)* { $how [] $docs $default_doc $field: $($type)* } }
            [] $rest $($next)*
        }
    };
    (@grouped $header:tt $fields:tt { $($options:tt)* } [$place:ident] $rest:tt
        $how:tt $docs:tt $default_doc:tt [$vis:vis] $field:ident { $($type:tt)* } { $default:expr }
        $($next:tt)*
    ) => {
        $crate::options::options! { @group $header $fields
            { $($options)* { $how [$place] $docs $default_doc $field: $($type)* } }
            [$place] $rest $($next)*
        }
    };

    (@loss { $($meta:tt)* } $vis:vis $loss:ident $names:tt { $($new:tt)* } $fields:tt
        { $({ $how:tt [$($place:ident)?] $docs:tt $default:tt $option:ident: $($type:tt)* })* }
    ) => {
        $crate::options::options! { @inner { $($meta)* #[must_use] } $vis $loss $names { $($new)* } $fields {} }

        impl $loss {
            $($crate::options::setter! { $how [$($place.)?] $docs $default $option: $($type)* })*

            /// The same loss with the tensors among its options on `device` and in `kind`, such as those of the input.
            /// Boolean tensors and integers keep their kind. Parameters stay where they are: they move with the
            /// `nn::VarStore` that they were created in.
            ///
            /// # Errors
            /// [`LossError::Kind`](crate::LossError::Kind) for a kind that is not floating,
            /// [`LossError::Torch`](crate::LossError::Torch) where libtorch cannot make the tensors.
            pub fn f_to(&self, device: tch::Device, kind: tch::Kind) -> Result<Self, $crate::LossError> {
                $crate::option_tensors::f_to(self, device, kind)
            }
        }

        impl Default for $loss {
            fn default() -> Self {
                Self::new()
            }
        }

        $crate::options::in_data! { $loss $names $([$($place)?] $option)* }
    };
    (@inner { $($meta:tt)* } $vis:vis $loss:ident $names:tt { $($new:tt)* }
        { $([$field_vis:vis $field:ident: $type:ty = $default:expr])* } $options:tt
    ) => {
        $($meta)*
        #[derive(Debug)]
        $vis struct $loss {
            $($field_vis $field: $type,)*
        }

        impl $loss {
            $($new)*
            $vis fn new() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::option_tensors::OptionTensors for $loss {
            fn map_tensors(&self, replace: &mut $crate::option_tensors::Replace) -> Self {
                Self { $($field: $crate::option_tensors::OptionTensors::map_tensors(&self.$field, replace),)* }
            }
        }

        /// A copy shares the tensors.
        #[allow(clippy::non_canonical_clone_impl)]
        impl Clone for $loss {
            fn clone(&self) -> Self {
                $crate::option_tensors::OptionTensors::map_tensors(self, &mut tch::Tensor::shallow_clone)
            }
        }
    };
}
pub(crate) use options;

/// The setter of an option, by value.
macro_rules! setter {
    ([] $place:tt $docs:tt $default:tt $option:ident: Option<$type:ty>) => {
        $crate::options::setter! { @set $place $docs $default $option $type, Some($option) }
    };
    ([] $place:tt $docs:tt $default:tt $option:ident: $type:ty) => {
        $crate::options::setter! { @set $place $docs $default $option $type, $option }
    };
    ([whole] $place:tt $docs:tt $default:tt $option:ident: $type:ty) => {
        $crate::options::setter! { @set $place $docs $default $option $type, $option }
    };
    ([into] $place:tt $docs:tt $default:tt $option:ident: $type:ty) => {
        $crate::options::setter! { @set $place $docs $default $option impl Into<$type>, $option.into() }
    };
    ([integers] $place:tt $docs:tt $default:tt $option:ident: $type:ty) => {
        $crate::options::setter! { @set $place $docs $default $option &[i64], Some($option.to_vec()) }
    };
    ([slice] $place:tt $docs:tt $default:tt $option:ident: Vec<$type:ty>) => {
        $crate::options::setter! { @set $place $docs $default $option &[$type], $option.to_vec() }
    };
    ([$own:ident] [$($place:tt)*] $docs:tt $default:tt $option:ident: $($type:tt)*) => {
        $own! { $docs $($place)*$option }
    };
    (@set [$($place:tt)*] { $($docs:tt)* } { $($default:tt)* } $option:ident $type:ty, $value:expr) => {
        $($docs)*
        $($default)*
        pub fn $option(mut self, $option: $type) -> Self {
            self.$($place)*$option = $value;
            self
        }
    };
}
pub(crate) use setter;

/// The description of a loss with a name in data.
#[cfg(feature = "serde")]
macro_rules! in_data {
    ($loss:ident [] $($options:tt)*) => {
        $crate::options::in_data! { @table $loss { stringify!($loss) } {} $($options)* }
    };
    ($loss:ident [$name:literal, $($alias:literal,)*] $($options:tt)*) => {
        impl $crate::description::Described for $loss {
            const NAMES: &'static [&'static str] = &[$name, stringify!($loss), $($alias),*];
        }

        $crate::options::in_data! { @table $loss { $name }
            {
                fn f_check(&self) -> Result<(), $crate::LossError> {
                    $crate::Loss::f_check_options(self)
                }
            }
            $($options)*
        }
    };
    (@table $loss:ident { $name:expr } { $($check:item)? } $([$($place:ident)?] $option:ident)*) => {
        impl $crate::description::Table for $loss {
            const NAME: &'static str = $name;
            const OPTIONS: &'static [&'static str] = &[$(stringify!($option)),*];

            fn f_read_options(
                &mut self,
                fields: &mut $crate::description::Fields,
                place: $crate::description::Place,
            ) -> Result<(), $crate::description::Problem> {
                $(fields.f_read(stringify!($option), &mut self.$($place.)?$option, place)?;)*
                Ok(())
            }

            fn f_write_options(&self) -> $crate::description::Written {
                vec![$($crate::description::OptionValue::f_write(&self.$($place.)?$option)),*]
            }

            $($check)?
        }

        /// Reads the options, each a field of its name.
        impl<'de> serde::Deserialize<'de> for $loss {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::description::f_deserialize(deserializer)
            }
        }

        /// Writes the options that differ from the default, each a field of its name.
        impl serde::Serialize for $loss {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::description::f_serialize(self, serializer)
            }
        }
    };
}
#[cfg(not(feature = "serde"))]
macro_rules! in_data {
    ($($loss:tt)*) => {};
}
pub(crate) use in_data;

/// Implements `From` for the values that single variants hold.
macro_rules! from_variants {
    ($enum:ident: $($type:ty => $variant:ident),+) => {
        $($crate::options::from_variants! { @one [] $enum $type, $variant })+
    };
    ($enum:ident<$life:lifetime>: $($type:ty => $variant:ident),+) => {
        $($crate::options::from_variants! { @one [$life] $enum $type, $variant })+
    };
    (@one [$($life:lifetime)?] $enum:ident $type:ty, $variant:ident) => {
        impl<$($life)?> From<$type> for $enum<$($life)?> {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
    };
}
pub(crate) use from_variants;

/// Options that are one of several words: the names of their variants in snake case, in data.
macro_rules! words {
    ($($type:ident),+) => {
        $crate::option_tensors::without_tensors!($($type),+);

        $(
            #[cfg(feature = "serde")]
            impl $crate::description::OptionValue for $type {
                fn f_read(
                    value: &$crate::description::Value,
                    _: $crate::description::Place,
                ) -> Result<Self, $crate::description::Mismatch> {
                    $crate::description::f_read_word(value)
                }

                fn f_write(&self) -> Result<$crate::description::Value, $crate::description::Problem> {
                    $crate::description::f_write_word(self)
                }
            }
        )+
    };
}
pub(crate) use words;

/// Options that are one of several words, or one of several fields with a number: `"hinge"`, or `{ disco_pop = 0.05 }`.
macro_rules! words_or_fields {
    ($type:ident { $($word:literal => $variant:ident),* } { $($field:literal => $of_number:ident),+ }) => {
        $crate::option_tensors::without_tensors!($type);

        #[cfg(feature = "serde")]
        impl $crate::description::OptionValue for $type {
            fn f_read(
                value: &$crate::description::Value,
                place: $crate::description::Place,
            ) -> Result<Self, $crate::description::Mismatch> {
                use $crate::description::{OptionValue, Value, expected};

                match value {
                    $(Value::Text(word) if word == $word => return Ok(Self::$variant),)*
                    Value::Map(fields) if fields.len() == 1 => match fields[0].0.as_str() {
                        $($field => return OptionValue::f_read(&fields[0].1, place).map(Self::$of_number),)+
                        _ => {}
                    },
                    _ => {}
                }
                let words: &[&str] = &[$($word),*];
                let fields: &[&str] = &[$($field),+];
                expected(&format!("one of the words {words:?} or a number in one of the fields {fields:?}"))
            }

            fn f_write(&self) -> Result<$crate::description::Value, $crate::description::Problem> {
                use $crate::description::Value;

                Ok(match self {
                    $(Self::$variant => Value::Text($word.to_owned()),)*
                    $(Self::$of_number(number) => Value::Map(vec![($field.to_owned(), number.f_write()?)]),)+
                })
            }
        }
    };
}
pub(crate) use words_or_fields;
