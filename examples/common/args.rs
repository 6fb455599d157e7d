//! The options that all programs have, and what several of them do with theirs.

use std::fs::{create_dir_all, read_to_string};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum, value_parser};
use serde::de::DeserializeOwned;
use tch::{Device, Kind};
use tch_losses::AnyLoss;

use super::digits::Digits;

/// The options of a program that trains, by default for so many epochs.
#[derive(Args)]
pub struct CommonArgs<const EPOCHS: u32> {
    /// How often to go through the training data
    #[arg(long, default_value_t = EPOCHS, value_parser = value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub epochs: u32,

    /// Chooses the first weights and the order of the data
    #[arg(long, default_value_t = 1, value_parser = value_parser!(i64).range(0..), allow_negative_numbers = true)]
    pub seed: i64,

    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,

    /// The folder for the pictures; it is made where it is missing
    #[arg(long, value_name = "DIR", default_value = "target/pictures")]
    out: PathBuf,
}

impl<const EPOCHS: u32> CommonArgs<EPOCHS> {
    /// The device that was asked for.
    pub fn device(&self) -> Result<Device> {
        self.device.find()
    }

    /// The path of a picture, in a folder that exists.
    pub fn picture(&self, name: &str) -> Result<PathBuf> {
        create_dir_all(&self.out).with_context(|| format!("cannot make the folder {} (--out)", self.out.display()))?;
        Ok(self.out.join(name))
    }
}

/// The option of a program that reads the digits.
#[derive(Args)]
pub struct DataArgs {
    /// The digits, in the format of examples/data/README.md
    #[arg(long, value_name = "FILE")]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.csv.gz"))]
    pub data: PathBuf,
}

impl DataArgs {
    /// The digits to learn from and those that are held out, on the CPU.
    pub fn digits(&self) -> Result<(Digits, Digits)> {
        Digits::read(&self.data)?.split()
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The first CUDA device
    Cuda,
}

impl DeviceChoice {
    fn find(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(Device::cuda_if_available()),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
            Self::Cuda => bail!("--device cuda: libtorch finds no CUDA device here; use --device cpu, or auto"),
        }
    }
}

/// The name of a choice as it is typed.
pub fn typed(choice: impl ValueEnum) -> String {
    // No variant is hidden from clap.
    choice.to_possible_value().expect("every choice can be typed").get_name().to_owned()
}

/// The choices that were typed, and all others in place of the one that stands for all.
pub fn chosen<T: ValueEnum + Copy + PartialEq>(typed: &[T], all: T) -> Vec<T> {
    match typed.contains(&all) {
        true => T::value_variants().iter().copied().filter(|&choice| choice != all).collect(),
        false => typed.to_vec(),
    }
}

/// The loss that a file describes, with its weights on `device`.
pub fn read_loss(path: &Path, device: Device) -> Result<AnyLoss> {
    let loss: AnyLoss = read_description(path)?;
    loss.f_to(device, Kind::Float).with_context(|| format!("the loss file {}", path.display()))
}

/// What a file in TOML or, if its name ends in .json, in JSON describes.
pub fn read_description<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let read = || -> Result<T> {
        let text = read_to_string(path)?;
        match path.extension().is_some_and(|extension| extension == "json") {
            true => Ok(serde_json::from_str(&text)?),
            false => Ok(toml::from_str(&text)?),
        }
    };
    read().with_context(|| format!("the loss file {}", path.display()))
}
