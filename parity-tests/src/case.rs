//! The case file: which reference to run, with which options, on which tensors. See `README.md` for the format.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value as Json};
use tch::{Device, Kind, Tensor};

/// The version of the format that this crate reads and writes.
pub const FORMAT: u64 = 1;

/// Tensors by name, as stored in a safetensors file.
pub type Tensors = BTreeMap<String, Tensor>;

/// Reads the tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> Result<Tensors> {
    let tensors = Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(tensors.into_iter().collect())
}

/// One comparison: a call of a reference.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique name; begins with the reference.
    pub id: String,
    /// Import path of a Python class or function.
    pub reference: String,
    /// Keyword arguments of the class's constructor or of the function.
    pub options: BTreeMap<String, Value>,
    /// Positional arguments of the call.
    pub args: Vec<Value>,
    /// Keyword arguments of the call.
    pub kwargs: BTreeMap<String, Value>,
    /// The arguments to differentiate with respect to.
    pub grad: Vec<ArgumentKey>,
    /// The vector of the vector-Jacobian product, one per output.
    pub grad_output: Option<Vec<TensorRef>>,
    /// One direction per entry of `grad` for the second derivative.
    pub second_order: Option<Vec<TensorRef>>,
    /// Parameters by state-dict name.
    pub state: BTreeMap<String, TensorRef>,
    /// Whether the loss is called under autocast, as in mixed precision.
    pub autocast: Autocast,
    /// Whether the reference takes this call.
    pub expect: Expect,
}

/// What the reference does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It computes a loss.
    Ok,
    /// It rejects the call.
    Error,
}

/// Whether a call is made under autocast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Autocast {
    /// It is not.
    #[default]
    Off,
    /// To the kind that libtorch has for the device.
    Default,
    /// To this kind.
    To(Kind),
}

/// A position or a keyword of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArgumentKey {
    /// The position among the positional arguments.
    Position(usize),
    /// The name of a keyword argument.
    Name(String),
}

impl std::fmt::Display for ArgumentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ArgumentKey::Position(position) => write!(f, "{position}"),
            ArgumentKey::Name(name) => write!(f, "{name}"),
        }
    }
}

/// An argument as the file gives it.
#[derive(Debug, Clone)]
pub enum Value {
    /// Python's `None`.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A string.
    Text(String),
    /// A list or tuple.
    List(Vec<Value>),
    /// A tensor of the tensor file.
    Tensor(TensorRef),
    /// An object of the reference library: its import path and, where it is built, its keyword arguments.
    Object(String, Option<BTreeMap<String, Value>>),
}

/// A tensor of the tensor file, or a strided view of it.
#[derive(Debug, Clone)]
pub struct TensorRef {
    name: String,
    view: Option<View>,
}

#[derive(Debug, Clone)]
struct View {
    size: Vec<i64>,
    stride: Vec<i64>,
    offset: i64,
}

impl TensorRef {
    /// The tensor, detached, on `device`, with the layout that the case asks for.
    pub fn resolve(&self, tensors: &Tensors, device: Device) -> Result<Tensor> {
        let stored = tensors.get(&self.name).ok_or_else(|| anyhow!("no tensor named {:?}", self.name))?;
        let stored = stored.f_to_device(device)?;
        match &self.view {
            None => Ok(stored),
            Some(view) => {
                let strided = stored.f_as_strided(view.size.as_slice(), view.stride.as_slice(), view.offset);
                strided.with_context(|| format!("tensor {:?} has no such view: {view:?}", self.name))
            }
        }
    }
}

/// Reads a case file. An error names the case and the field.
pub fn read_cases(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_cases(&text).with_context(|| format!("{} is not a case file", path.display()))
}

/// Parses the text of a case file.
pub fn parse_cases(text: &str) -> Result<Vec<Case>> {
    let json: Json = serde_json::from_str(text)?;
    let mut file = Fields::new(json, "the file")?;
    let format = file.required("format")?;
    ensure!(format == FORMAT, "field \"format\" is {format}, expected {FORMAT}");
    let Json::Array(cases) = file.required("cases")? else { bail!("field \"cases\" is not a list") };
    let cases = cases.into_iter().enumerate().map(|(position, json)| {
        let id = json.get("id").and_then(Json::as_str).map(str::to_owned);
        let name = id.unwrap_or_else(|| format!("number {position}"));
        Case::parse(json).with_context(|| format!("case {name}"))
    });
    let cases: Vec<Case> = cases.collect::<Result<_>>()?;
    let mut seen = std::collections::HashSet::new();
    for case in &cases {
        ensure!(seen.insert(&case.id), "case {}: the id is not unique", case.id);
    }
    Ok(cases)
}

impl Case {
    fn parse(json: Json) -> Result<Case> {
        let mut fields = Fields::new(json, "the case")?;
        let (args, kwargs) = fields.parse("inputs", parse_inputs)?.context("field \"inputs\" is missing")?;
        let case = Case {
            id: fields.parse("id", parse_text)?.context("field \"id\" is missing")?,
            reference: fields.parse("reference", parse_text)?.context("field \"reference\" is missing")?,
            options: fields.parse("options", parse_values)?.unwrap_or_default(),
            args,
            kwargs,
            grad: fields.parse("grad", |json| parse_list(json, parse_key))?.unwrap_or_default(),
            grad_output: fields.parse("grad_output", |json| parse_list(json, parse_tensor))?,
            second_order: fields.parse("second_order", |json| parse_list(json, parse_tensor))?,
            state: fields.parse("state", parse_state)?.unwrap_or_default(),
            autocast: fields.parse("autocast", parse_autocast)?.unwrap_or_default(),
            expect: fields.parse("expect", parse_expect)?.unwrap_or(Expect::Ok),
        };
        fields.finish()?;
        case.validate()?;
        Ok(case)
    }

    fn validate(&self) -> Result<()> {
        for key in &self.grad {
            let argument = self.argument(key).with_context(|| format!("field \"grad\": no argument {key}"))?;
            ensure!(matches!(argument, Value::Tensor(_)), "field \"grad\": argument {key} is not a tensor");
        }
        if let Some(directions) = &self.second_order {
            let (actual, expected) = (directions.len(), self.grad.len());
            ensure!(
                actual == expected,
                "field \"second_order\" has {actual} entries, expected {expected}, as \"grad\""
            );
        }
        Ok(())
    }

    /// The argument that `key` names.
    pub fn argument(&self, key: &ArgumentKey) -> Option<&Value> {
        match key {
            ArgumentKey::Position(position) => self.args.get(*position),
            ArgumentKey::Name(name) => self.kwargs.get(name),
        }
    }
}

/// The fields of an object, taken out one by one, so that an unknown one is noticed.
struct Fields(Map<String, Json>);

impl Fields {
    fn new(json: Json, what: &str) -> Result<Fields> {
        match json {
            Json::Object(map) => Ok(Fields(map)),
            other => bail!("{what} is {other}, expected an object"),
        }
    }

    fn required(&mut self, field: &str) -> Result<Json> {
        self.0.remove(field).with_context(|| format!("field {field:?} is missing"))
    }

    fn parse<T>(&mut self, field: &str, parse: impl FnOnce(Json) -> Result<T>) -> Result<Option<T>> {
        match self.0.remove(field) {
            None | Some(Json::Null) => Ok(None),
            Some(json) => parse(json).map(Some).with_context(|| format!("field {field:?}")),
        }
    }

    fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            Some(field) => bail!("unknown field {field:?}"),
            None => Ok(()),
        }
    }
}

fn parse_text(json: Json) -> Result<String> {
    match json {
        Json::String(text) => Ok(text),
        other => bail!("{other} is not a string"),
    }
}

fn parse_list<T>(json: Json, parse: impl Fn(Json) -> Result<T>) -> Result<Vec<T>> {
    match json {
        Json::Array(items) => items.into_iter().map(parse).collect(),
        other => bail!("{other} is not a list"),
    }
}

fn parse_map<T>(json: Json, parse: impl Fn(Json) -> Result<T>) -> Result<BTreeMap<String, T>> {
    let Json::Object(map) = json else { bail!("{json} is not an object") };
    map.into_iter().map(|(name, json)| Ok((name.clone(), parse(json).context(name)?))).collect()
}

fn parse_values(json: Json) -> Result<BTreeMap<String, Value>> {
    parse_map(json, parse_value)
}

fn parse_state(json: Json) -> Result<BTreeMap<String, TensorRef>> {
    parse_map(json, parse_tensor)
}

fn parse_inputs(json: Json) -> Result<(Vec<Value>, BTreeMap<String, Value>)> {
    if json.is_array() {
        return Ok((parse_list(json, parse_value)?, BTreeMap::new()));
    }
    let mut fields = Fields::new(json, "it")?;
    let args = fields.parse("args", |json| parse_list(json, parse_value))?.unwrap_or_default();
    let kwargs = fields.parse("kwargs", parse_values)?.unwrap_or_default();
    fields.finish()?;
    Ok((args, kwargs))
}

fn parse_key(json: Json) -> Result<ArgumentKey> {
    match json {
        Json::String(name) => Ok(ArgumentKey::Name(name)),
        Json::Number(number) if number.is_u64() => {
            Ok(ArgumentKey::Position(number.as_u64().unwrap_or_default() as usize))
        }
        other => bail!("{other} is neither a position nor a name"),
    }
}

fn parse_autocast(json: Json) -> Result<Autocast> {
    match (json.as_bool(), json.as_str()) {
        (Some(true), _) => Ok(Autocast::Default),
        (Some(false), _) => Ok(Autocast::Off),
        (_, Some("bf16")) => Ok(Autocast::To(Kind::BFloat16)),
        (_, Some("f16")) => Ok(Autocast::To(Kind::Half)),
        _ => bail!("{json} is neither true nor false, \"bf16\" or \"f16\""),
    }
}

fn parse_expect(json: Json) -> Result<Expect> {
    match json.as_str() {
        Some("ok") => Ok(Expect::Ok),
        Some("error") => Ok(Expect::Error),
        _ => bail!("{json} is neither \"ok\" nor \"error\""),
    }
}

fn parse_value(json: Json) -> Result<Value> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(flag),
        Json::String(text) => Value::Text(text),
        Json::Array(items) => Value::List(items.into_iter().map(parse_value).collect::<Result<_>>()?),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Int(integer),
            None => Value::Float(number.as_f64().context("a number out of range")?),
        },
        Json::Object(map) if map.contains_key("object") => {
            let mut fields = Fields(map);
            let path = fields.parse("object", parse_text)?.context("field \"object\" is null")?;
            let options = fields.parse("options", parse_values)?;
            fields.finish()?;
            Value::Object(path, options)
        }
        object => Value::Tensor(parse_tensor(object)?),
    })
}

fn parse_tensor(json: Json) -> Result<TensorRef> {
    let mut fields = Fields::new(json, "the tensor reference")?;
    let name = fields.parse("tensor", parse_text)?.context("field \"tensor\" is missing")?;
    let integers = |json| parse_list(json, |item| item.as_i64().with_context(|| format!("{item} is not an integer")));
    let size = fields.parse("size", integers)?;
    let stride = fields.parse("stride", integers)?;
    let offset = fields.parse("offset", |json| json.as_i64().context("not an integer"))?;
    fields.finish()?;
    let view = match (size, stride) {
        (Some(size), Some(stride)) => Some(View { size, stride, offset: offset.unwrap_or(0) }),
        (None, None) if offset.is_none() => None,
        _ => bail!("a view needs both \"size\" and \"stride\""),
    };
    Ok(TensorRef { name, view })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        format!("{:#}", parse_cases(text).unwrap_err())
    }

    fn one_case(fields: &str) -> String {
        format!(r#"{{"format": 1, "cases": [{{"id": "a", "reference": "torch.nn.MSELoss", {fields}}}]}}"#)
    }

    #[test]
    fn errors_name_the_case_and_the_field() {
        for (text, expected) in [
            (r#"{"cases": []}"#.to_owned(), "field \"format\" is missing"),
            (r#"{"format": 2, "cases": []}"#.to_owned(), "field \"format\" is 2, expected 1"),
            (r#"{"format": 1, "cases": [{"id": "a"}]}"#.to_owned(), "case a: field \"inputs\" is missing"),
            (r#"{"format": 1, "cases": [7]}"#.to_owned(), "case number 0: the case is 7, expected an object"),
            (one_case(r#""inputs": [], "weird": 1"#), "case a: unknown field \"weird\""),
            (one_case(r#""inputs": [], "expect": "maybe""#), "case a: field \"expect\": \"maybe\" is neither"),
            (one_case(r#""inputs": [], "grad": [0]"#), "case a: field \"grad\": no argument 0"),
            (one_case(r#""inputs": [1], "grad": [0]"#), "case a: field \"grad\": argument 0 is not a tensor"),
            (one_case(r#""inputs": [{"tensr": "x"}]"#), "case a: field \"inputs\": field \"tensor\" is missing"),
            (one_case(r#""inputs": [{"tensor": "x", "size": [1]}]"#), "a view needs both"),
            (one_case(r#""inputs": [{"tensor": "x"}], "grad": [0], "second_order": []"#), "has 0 entries, expected 1"),
        ] {
            assert!(message(&text).contains(expected), "{} lacks {expected}", message(&text));
        }
    }

    #[test]
    fn ids_are_unique() {
        let case = r#"{"id": "a", "reference": "r", "inputs": []}"#;
        let text = format!(r#"{{"format": 1, "cases": [{case}, {case}]}}"#);
        assert!(message(&text).contains("case a: the id is not unique"));
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let reference = TensorRef { name: "17/input".into(), view: None };
        let error = reference.resolve(&Tensors::new(), Device::Cpu).unwrap_err();
        assert_eq!(error.to_string(), "no tensor named \"17/input\"");
    }
}
