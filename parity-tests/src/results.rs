//! The result file: what a side computed for each case.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::case::{FORMAT, Tensors, read_tensors};

/// What became of one case.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct CaseResult {
    /// Whether it was computed.
    pub status: Status,
    /// How many outputs it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// The first line of the error, or what is not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Why there is no second derivative where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_order: Option<String>,
}

/// Whether a case was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was.
    Ok,
    /// The call was rejected.
    Error,
    /// This side does not know the reference or one of its options.
    Unsupported,
    /// The process would have died; never a valid answer.
    Panic,
}

/// The versions that made a result file.
pub type Versions = BTreeMap<String, String>;

#[derive(Debug, Serialize, Deserialize)]
struct ResultFile {
    format: u64,
    results: BTreeMap<String, CaseResult>,
    #[serde(default)]
    versions: Versions,
}

/// The results of one side, with their tensors.
#[derive(Debug, Default)]
pub struct Results {
    /// By case id.
    pub cases: BTreeMap<String, CaseResult>,
    /// By `ID:output/K`, `ID:grad/K`, `ID:grad2/K`, `ID:grad_state/NAME`.
    pub tensors: Tensors,
    /// The versions that made them.
    pub versions: Versions,
}

impl Results {
    /// Reads a result file and its tensors.
    pub fn read(json: &Path, tensors: &Path) -> Result<Results> {
        let text = std::fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
        let file: ResultFile =
            serde_json::from_str(&text).with_context(|| format!("{} is not a result file", json.display()))?;
        ensure!(file.format == FORMAT, "{}: format {}, expected {FORMAT}", json.display(), file.format);
        Ok(Results { cases: file.results, tensors: read_tensors(tensors)?, versions: file.versions })
    }

    /// The results of all parts of the cases.
    pub fn merge(parts: impl IntoIterator<Item = Results>) -> Results {
        let mut all = Results::default();
        for part in parts {
            all.cases.extend(part.cases);
            all.tensors.extend(part.tensors);
            all.versions.extend(part.versions);
        }
        all
    }

    /// Reads `results.json` and `results.safetensors` of a folder.
    pub fn read_dir(dir: &Path) -> Result<Results> {
        Results::read(&dir.join("results.json"), &dir.join("results.safetensors"))
    }

    /// Writes a result file and its tensors.
    pub fn write(&self, json: &Path, tensors: &Path) -> Result<()> {
        let file = ResultFile { format: FORMAT, results: self.cases.clone(), versions: self.versions.clone() };
        std::fs::write(json, serde_json::to_string(&file)?)
            .with_context(|| format!("cannot write {}", json.display()))?;
        let named: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        Tensor::write_safetensors(&named, tensors).with_context(|| format!("cannot write {}", tensors.display()))
    }
}
