//! The command line: wrong calls and files get one clear line and their own exit status.

use std::path::Path;
use std::process::{Command, Output};

fn parity(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_parity")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `eval` on the text of a case file.
fn eval(text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("cases.json"), text).unwrap();
    let tensor = tch::Tensor::from_slice(&[1.0, 2.0]);
    tch::Tensor::write_safetensors(&[("x", &tensor)], path("tensors.safetensors")).unwrap();
    parity(&[
        "eval",
        "--cases",
        &path("cases.json"),
        "--tensors",
        &path("tensors.safetensors"),
        "--results",
        &path("results.json"),
        "--result-tensors",
        &path("results.safetensors"),
    ])
}

#[test]
fn a_missing_file_is_named() {
    let output = parity(&["compare", "--expected", "nowhere", "--actual", "nowhere", "--cases", "nowhere/cases.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot read nowhere/cases.json"), "{}", stderr(&output));
}

#[test]
fn a_malformed_case_is_named() {
    let output = eval(r#"{"format": 1, "cases": [{"id": "seven", "reference": "torch.nn.MSELoss", "inpts": []}]}"#);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("case seven: field \"inputs\" is missing"), "{}", stderr(&output));
}

#[test]
fn a_missing_tensor_is_named() {
    let inputs = r#"[{"tensor": "x"}, {"tensor": "y"}]"#;
    let case = format!(r#"{{"id": "seven", "reference": "torch.nn.MSELoss", "inputs": {inputs}}}"#);
    let output = eval(&format!(r#"{{"format": 1, "cases": [{case}]}}"#));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("case seven: inputs: no tensor named \"y\""), "{}", stderr(&output));
}

#[test]
fn a_case_that_fails_does_not_stop_the_others() {
    let case = |id: &str, reference: &str, option: &str| {
        format!(
            r#"{{"id": "{id}", "reference": "{reference}", "options": {{{option}}},
                "inputs": [{{"tensor": "x"}}, {{"tensor": "x"}}]}}"#
        )
    };
    let cases = [
        case("unknown", "torch.nn.NoSuchLoss", ""),
        case("option", "torch.nn.MSELoss", r#""frobnicate": 1"#),
        case("rejected", "torch.nn.MSELoss", r#""reduction": "median""#),
        case("fine", "torch.nn.MSELoss", ""),
    ];
    let output = eval(&format!(r#"{{"format": 1, "cases": [{}]}}"#, cases.join(",")));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_wrong_device_is_a_wrong_call() {
    let output = parity(&["check", "--device", "gpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("neither cpu, cuda nor cuda:N"), "{}", stderr(&output));
}

#[test]
fn without_a_gpu_nothing_is_reported_as_passed() {
    if tch::Cuda::is_available() {
        return;
    }
    let output = parity(&["check", "--device", "cuda"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stderr(&output), "no device cuda:0 on this machine: nothing was checked\n");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_missing_python_is_said() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("pytorch").display().to_string();
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().display().to_string();
    let output = parity(&["check", "--python", "/no/such/python", "--scripts", &scripts, "--work", &work]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot run /no/such/python: run ./scripts/setup"), "{}", stderr(&output));
}

/// Neither times nor ratios are looked at: they are the machine's.
#[test]
fn the_benchmark_measures_what_it_has_compared() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".venv/bin/python");
    if !python.is_file() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (work, json, svg, report) = (path("work"), path("bench.json"), path("bench.svg"), path("bench.md"));
    let python = python.display().to_string();
    let what = ["bench", "--quick", "--filter", "torch.nn.MSELoss", "--sizes", "tiny", "--rounds", "1", "--no-compile"];
    let files = ["--work", &work, "--json", &json, "--svg", &svg, "--report", &report, "--python", &python];
    let output = parity(&[&what[..], &files[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let document: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let passes: Vec<_> = document["records"].as_array().unwrap().iter().map(|record| &record["pass"]).collect();
    assert_eq!(passes, ["forward", "backward"]);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("MseLoss  256"));
    assert!(std::fs::read_to_string(&report).unwrap().contains("| MseLoss | 256   | fwd+bwd |"));
}

#[test]
fn the_benchmark_has_no_loss_of_that_name() {
    let output = parity(&["bench", "--filter", "NoSuchLoss"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no loss of that name has such a size"), "{}", stderr(&output));
}

#[test]
fn help_shows_examples() {
    let output = parity(&["--help"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("parity check --filter torch.nn.CTCLoss"));
}

/// What a run of the fuzzer says, of two processes of the losses of the mean squared error.
fn fuzz(arguments: &[&str]) -> (Option<i32>, String) {
    let output = parity(&[&["fuzz", "--filter", "mse", "--seed", "1"], arguments].concat());
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_fuzzer_counts_its_calls() {
    let (status, text) = fuzz(&["--calls", "30", "--verbose"]);
    assert!(text.contains("fuzz: 30 calls, "), "{text}");
    assert!(text.contains("| mse  | "), "{text}");
    assert_eq!(status, Some(if text.contains("fuzz: 30 calls, 0 findings") { 0 } else { 1 }), "{text}");
}

#[test]
fn the_fuzzer_finds_a_wrong_engine_and_shows_the_call() {
    let (status, text) = fuzz(&["--calls", "200", "--sabotage", "value"]);
    assert_eq!(status, Some(1), "{text}");
    let row = text.lines().find(|line| line.starts_with("| value ")).expect("a finding");
    let seed = row.split('|').nth(4).expect("a seed").trim();
    let shown = parity(&["fuzz", "--replay", seed]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for part in ["{\"loss\": \"mse\"", "  input: ", "  target: ", "auto: ", "composite: ", "fuzz: 1 calls, "] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
}

#[test]
fn the_fuzzer_survives_what_its_calls_do_not() {
    let (status, text) = fuzz(&["--calls", "3", "--sabotage", "abort"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("| crash ") && text.contains("signal 6"), "{text}");
    assert!(text.contains("fuzz: 3 calls, 3 findings"), "{text}");
    let (status, text) = fuzz(&["--calls", "1", "--jobs", "1", "--patience", "1", "--sabotage", "hang"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("| hang ") && text.contains("fuzz: 1 calls, 1 findings"), "{text}");
}

#[test]
fn the_share_of_the_oracle_is_one() {
    let output = parity(&["fuzz", "--oracle-share", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is no number from 0 to 1"), "{}", stderr(&output));
}

#[test]
fn the_fuzzer_has_no_loss_of_that_name() {
    let output = parity(&["fuzz", "--filter", "no_such_loss"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("there is no loss \"no_such_loss\", only l1, mse, "), "{}", stderr(&output));
}
