//! A share of the calls, of which both backends agree, goes through the Python references too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, Tensor};

use super::call::{Call, LARGE, Order};
use super::chance::{call, losses};
use super::class::Class;
use super::data::Data;
use super::references::{REFERENCES, WITHOUT_EFFECT};
use super::report::Summary;
use super::tensors::{is_floating, is_plain, values};
use crate::case::{Case, FORMAT, read_cases};
use crate::check::{CheckOptions, DeviceName, hold};
use crate::compare::Verdict;
use crate::oracle::{Python, PythonOptions};
use crate::results::Status;

/// What the parent process asks for.
#[derive(Debug, Args)]
pub struct ReferenceOptions {
    /// A file with the seeds, one a line
    #[arg(long)]
    seeds: PathBuf,
    /// How many processes there are at a time
    #[arg(long)]
    jobs: u16,
    #[command(flatten)]
    python: PythonOptions,
}

/// What a process says of a share of the calls.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Share {
    /// How many references have computed theirs.
    computed: usize,
    /// Loss, seed, and what is wrong.
    findings: Vec<(String, u64, String)>,
}

/// Holds the calls of the seeds against their references, in a process of its own: what ends it ends no more than that.
/// The number of those that the references have computed.
pub fn check(seeds: &[u64], python: &PythonOptions, jobs: usize, summary: &mut Summary) -> Result<usize> {
    let work = tempfile::tempdir()?;
    let file = work.path().join("seeds");
    std::fs::write(&file, seeds.iter().map(|seed| format!("{seed}\n")).collect::<String>())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("fuzz-references").arg("--seeds").arg(&file).arg("--jobs").arg(jobs.to_string());
    python.pass_on(&mut command);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the process of the references ended: {}", output.status);
    let share: Share = serde_json::from_slice(&output.stdout)?;
    for (loss, seed, detail) in &share.findings {
        summary.end(loss, *seed, Class::Oracle, detail);
    }
    Ok(share.computed)
}

/// Holds the calls of a file of seeds against their references, and writes what is wrong.
pub fn run(options: &ReferenceOptions) -> Result<()> {
    let text = std::fs::read_to_string(&options.seeds)?;
    let seeds = text.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    println!("{}", serde_json::to_string(&share(&seeds, &options.python, options.jobs)?)?);
    Ok(())
}

fn share(seeds: &[u64], python: &PythonOptions, jobs: u16) -> Result<Share> {
    let known = losses();
    let mut made = Vec::new();
    for seed in seeds {
        made.extend(case(*seed, &call(*seed, &known)?)?.map(|case| (*seed, case)));
    }
    if made.is_empty() {
        return Ok(Share::default());
    }
    let work = tempfile::tempdir()?;
    let seeds = write(&made, work.path())?;
    let options = CheckOptions {
        seed: 0,
        filter: None,
        device: DeviceName(Device::Cpu),
        threads: 1,
        jobs: Some(jobs),
        report: None,
        html: None,
        work: work.path().to_path_buf(),
        backend: None,
        python: python.clone(),
    };
    let cases = read_cases(&work.path().join("cases.json"))?;
    let held = hold(&Python::find(python)?, &cases, &options)?;
    // What the reference rejects the crate may take.
    let is_computed = |case: &Case| held.expected.cases.get(&case.id).is_some_and(|result| result.status == Status::Ok);
    let mut share = Share { computed: cases.iter().filter(|case| is_computed(case)).count(), findings: Vec::new() };
    for side in &held.sides {
        for ((case, verdict), (seed, loss)) in cases.iter().zip(&side.verdicts).zip(&seeds) {
            if let (Verdict::Failed(reason), true) = (verdict, is_computed(case)) {
                share.findings.push(((*loss).to_owned(), *seed, format!("{}: {reason}", case.reference)));
            }
        }
    }
    Ok(share)
}

/// A case and its tensors.
struct Made {
    loss: &'static str,
    case: Json,
    tensors: Vec<(String, Tensor)>,
}

/// The cases and their tensors in a folder; the seed and the loss of each case.
fn write(made: &[(u64, Made)], folder: &Path) -> Result<Vec<(u64, &'static str)>> {
    let cases: Vec<&Json> = made.iter().map(|(_, made)| &made.case).collect();
    std::fs::write(folder.join("cases.json"), json!({"format": FORMAT, "cases": cases}).to_string())?;
    let tensors: Vec<&(String, Tensor)> = made.iter().flat_map(|(_, made)| &made.tensors).collect();
    let named: Vec<(&String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name, tensor)).collect();
    Tensor::write_safetensors(&named, folder.join("tensors.safetensors"))?;
    Ok(made.iter().map(|(seed, made)| (*seed, made.loss)).collect())
}

/// The case of a call; none where its reference has other options, or takes other arguments.
fn case(seed: u64, call: &Call) -> Result<Option<Made>> {
    let Some((loss, reference, names)) = REFERENCES.iter().find(|(loss, ..)| *loss == call.loss) else {
        return Ok(None);
    };
    let Some(Data::Map(fields)) = &call.data else { return Ok(None) };
    let ordinary = |tensor: &Tensor| {
        is_plain(tensor)
            && (is_floating(tensor.kind()) || tensor.kind() == Kind::Int64)
            && values(tensor).is_ok_and(|values| values.iter().all(|value| value.abs() < LARGE))
    };
    if call.same || !call.arguments.iter().all(|(_, tensor)| ordinary(tensor)) {
        return Ok(None);
    }
    // PyTorch leaves the mean of no rows unwritten, and returns what the memory holds.
    let unwritten = ["multi_margin", "multi_label_margin"].contains(&call.loss);
    if unwritten && call.arguments[0].1.numel() == 0 {
        return Ok(None);
    }
    // Of mixed kinds this crate has rules of its own: the kind of the result is that of the input.
    let own = call.arguments[0].1.kind();
    let mut kinds = call.arguments.iter().map(|(_, tensor)| tensor.kind()).chain([call.options]);
    if kinds.any(|kind| is_floating(kind) && kind != own) {
        return Ok(None);
    }
    let mut tensors = Vec::new();
    let mut options = Map::new();
    for (name, value) in fields.iter().filter(|(name, _)| name != "loss" && !WITHOUT_EFFECT.contains(&name.as_str())) {
        let value = match names.contains(&name.as_str()) {
            true => option(seed, call, name, value, &mut tensors)?,
            false => None,
        };
        let Some(value) = value else { return Ok(None) };
        options.insert(name.clone(), value);
    }
    let mut grad = Vec::new();
    let mut directions = Vec::new();
    let mut inputs = Vec::new();
    for (position, (name, tensor)) in call.arguments.iter().enumerate() {
        inputs.push(stored(format!("{seed}/{name}"), tensor, &mut tensors)?);
        if tensor.requires_grad() {
            grad.push(position);
            let direction = Tensor::f_ones(tensor.size(), (tensor.kind(), Device::Cpu))?;
            directions.push(stored(format!("{seed}/direction/{name}"), &direction, &mut tensors)?);
        }
    }
    let kind = format!("{:?}", call.arguments[0].1.kind()).to_lowercase();
    let mut case = json!({
        "id": format!("{reference}/fuzz/{kind}/{seed}"),
        "reference": reference,
        "options": options,
        "inputs": inputs,
        "grad": grad,
    });
    if call.order == Order::Second && !directions.is_empty() {
        case["second_order"] = directions.into();
    }
    Ok(Some(Made { loss, case, tensors }))
}

/// The value of an option as the reference has it.
fn option(
    seed: u64,
    call: &Call,
    name: &str,
    value: &Data,
    tensors: &mut Vec<(String, Tensor)>,
) -> Result<Option<Json>> {
    Ok(match value {
        Data::Bool(value) => Some(json!(value)),
        Data::Integer(value) => Some(json!(value)),
        Data::Number(value) if value.abs() < LARGE => Some(json!(of_few_digits(*value)?)),
        Data::Text(word) if name == "reduction" => Some(json!(word.replace("batch_mean", "batchmean"))),
        Data::List(_) => {
            let (mut shape, mut numbers) = (Vec::new(), Vec::new());
            flatten(value, 0, &mut shape, &mut numbers);
            let tensor = Tensor::f_from_slice(&numbers)?.f_reshape(&shape)?.f_to_kind(call.options)?;
            Some(stored(format!("{seed}/option/{name}"), &tensor, tensors)?)
        }
        _ => None,
    })
}

/// Nearly the same number. Python and serde_json read it alike; one of more digits serde_json may read one unit off.
fn of_few_digits(value: f64) -> Result<f64> {
    Ok(format!("{value:.12e}").parse()?)
}

/// The numbers of nested lists, and their shape.
fn flatten(value: &Data, depth: usize, shape: &mut Vec<i64>, numbers: &mut Vec<f64>) {
    match value {
        Data::List(items) => {
            if depth == shape.len() {
                shape.push(items.len() as i64);
            }
            items.iter().for_each(|item| flatten(item, depth + 1, shape, numbers));
        }
        Data::Number(number) => numbers.push(*number),
        _ => {}
    }
}

/// Keeps a tensor, and says where it is: with its strides, where no two of its elements are one.
fn stored(name: String, tensor: &Tensor, tensors: &mut Vec<(String, Tensor)>) -> Result<Json> {
    let (size, stride) = (tensor.size(), tensor.stride());
    let detached = tensor.f_detach()?;
    let expanded = size.iter().zip(&stride).any(|(size, stride)| *size > 1 && *stride == 0);
    if tensor.is_contiguous() || expanded || tensor.numel() == 0 {
        // A copy, because a tensor of zeros may have no memory.
        let mut copy = Tensor::f_zeros(&size, (tensor.kind(), Device::Cpu))?;
        copy.f_copy_(&detached)?;
        tensors.push((name.clone(), copy));
        return Ok(json!({"tensor": name}));
    }
    let last: i64 = size.iter().zip(&stride).map(|(size, stride)| (size - 1) * stride).sum();
    let storage = Tensor::f_zeros([last + 1], (tensor.kind(), Device::Cpu))?;
    storage.f_as_strided(size.as_slice(), stride.as_slice(), 0)?.f_copy_(&detached)?;
    tensors.push((name.clone(), storage));
    Ok(json!({"tensor": name, "size": size, "stride": stride}))
}
