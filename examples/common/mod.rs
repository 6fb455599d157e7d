//! What the training programs share: their options, their data, the loop, and the pictures they draw.
//!
//! A program that is copied takes this folder with it, or the few functions that it calls.

// Each program is compiled with all of the folder, and calls a part of it.
#![allow(dead_code)]

pub mod args;
pub mod canvas;
pub mod digits;
pub mod layers;
pub mod picture;
pub mod plot;
pub mod progress;
pub mod training;

use std::process::ExitCode;

/// Lets libtorch compute on one core. The nets are so small that more threads gain little, and lose much where another
/// program keeps a core busy: they wait for each other at every step. And so a result does not depend on how many cores
/// there are.
pub fn use_one_core() {
    tch::set_num_threads(1);
}

/// Ends a program: an error is one line.
pub fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
