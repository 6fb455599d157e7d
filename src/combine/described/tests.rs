//! Every loss and every option is described, read, and refused where it is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

use super::registry::{Entry, LOSSES};
use super::*;
use crate::description::{Described, OTHERS, nearest, spelling};
use crate::{Activation, CrossEntropyLoss, DiceLoss, MseLoss, SoftmaxFocalLoss, with_backend};

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

/// The Debug output of the described loss and of `new()`.
fn debug(entry: &Entry, options: &Json) -> Result<[String; 2], String> {
    let value: Value = serde_json::from_value(options.clone()).unwrap();
    let Value::Map(fields) = &value else { panic!("options are fields") };
    (entry.debug)(Fields { loss: entry.names[0], fields: fields.iter().collect() })
}

/// The number of tensors that a loss with one option says it holds.
fn tensors(entry: &Entry, option: &str, value: &Json) -> usize {
    let value: Value = serde_json::from_value(json!({ option: value })).unwrap();
    let Value::Map(fields) = &value else { panic!("options are fields") };
    let fields = Fields { loss: entry.names[0], fields: fields.iter().collect() };
    let (loss, _) = (entry.read)(fields, Place::DEFAULT).unwrap();
    let mut count = 0;
    let again = loss.with_tensors(&mut |tensor| {
        count += 1;
        tensor.shallow_clone()
    });
    assert!(again.is_some(), "{} can be copied", entry.names[0]);
    count
}

#[test]
fn names_are_those_of_the_types_in_snake_case() {
    for entry in LOSSES {
        let type_name = entry.names[1];
        let joined = |name: &str| name.replace('_', "");
        let expected = snake_case(type_name.strip_suffix("Loss").unwrap_or(type_name));
        assert_eq!(joined(entry.names[0]), joined(&expected), "{type_name}");
    }
    let all: Vec<&str> = LOSSES.iter().flat_map(|entry| entry.names).copied().chain(SUM.iter().copied()).collect();
    let unique: BTreeSet<&str> = all.iter().copied().collect();
    let repeated = LOSSES.iter().filter(|entry| entry.names[2..].contains(&entry.names[1])).count();
    assert_eq!(unique.len() + repeated, all.len(), "a name means one loss");
}

/// Values of which each option takes one that is not its default.
fn candidates() -> Vec<Json> {
    vec![
        json!(true),
        json!(false),
        json!(2),
        json!(7),
        json!(0.375),
        json!("sum"),
        json!("nan"),
        json!("all"),
        json!("counted"),
        json!("softmax"),
        json!("none"),
        json!("semi_hard"),
        json!("eps"),
        json!("sample"),
        json!("channel"),
        json!("uniform"),
        json!("reflect"),
        json!("dissimilarity"),
        json!({"measure": "lp", "p": 3, "normalize_embeddings": false, "power": 2}),
        json!({"low": 0.5}),
        json!("squared"),
        json!("pixel"),
        json!("diagonal"),
        json!("weight"),
        json!("zero"),
        json!("simple"),
        json!("reduced"),
        json!("terms"),
        json!("signs"),
        json!([0.5, 2]),
        json!([true, false]),
        json!([0, 1]),
        json!([1, 3]),
        json!({"loss": "jaccard", "eps": 0.5}),
        json!({"loss": "bce_with_logits", "weight": [1]}),
        json!({"loss": "sigmoid_focal", "gamma": 3}),
        json!({"x": 1}),
        json!([[1], [1, 2]]),
        json!([1, true]),
        json!(null),
    ]
}

#[test]
fn every_option_of_every_loss_can_be_set_and_refused() {
    for entry in LOSSES {
        let name = entry.names[0];
        let [described, new] = debug(entry, &json!({})).unwrap();
        assert_eq!(described, new, "{name}: the defaults are those of new()");
        let unknown = debug(entry, &json!({"no_such_option": 1})).unwrap_err();
        let start = format!("loss {name} has no option no_such_option");
        let options: Vec<&[&str]> = entry.options.iter().map(std::slice::from_ref).collect();
        assert_eq!(unknown, format!("{start}{}", nearest("no_such_option", &options)));
        for option in entry.options {
            assert!(![FACTOR, NAME, TERMS, "loss"].contains(option), "{name}.{option} is a field of another meaning");
            let (mut set, mut refused) = (0, 0);
            for candidate in &candidates() {
                match debug(entry, &json!({ *option: candidate })) {
                    Ok([described, _]) => {
                        set += usize::from(described != new);
                        let own = ["weight", "pos_weight", "mask", "alpha"].contains(option) && candidate.is_array();
                        let holds = own || candidate["weight"].is_array();
                        assert_eq!(tensors(entry, option, candidate), usize::from(holds), "{name}.{option}");
                    }
                    Err(message) => {
                        refused += 1;
                        let start = format!("loss {name}: option {option}");
                        let says = message.contains("expected") || message.contains("only");
                        assert!(message.starts_with(&start) && says, "{message}");
                    }
                }
            }
            // Set to another value it is for another focal loss.
            assert!(set > 0 || *option == "focal_background", "{name}.{option} cannot be set");
            assert!(refused > 2, "{name}.{option} takes anything");
        }
    }
}

/// The options of a loss, each with a value that is not its default, as far as they go together.
fn every_option(entry: &Entry) -> Json {
    let mut options = json!({});
    let mut before = debug(entry, &options).unwrap()[0].clone();
    for option in entry.options {
        let set = candidates().into_iter().find_map(|candidate| {
            let mut with = options.clone();
            with[*option] = candidate;
            let [described, _] = debug(entry, &with).ok()?;
            (described != before).then_some((with, described))
        });
        (options, before) = set.unwrap_or_else(|| panic!("{}.{option} cannot be set with {options}", entry.names[0]));
    }
    options
}

/// The tensors among the options of a loss.
fn all_tensors(loss: &dyn Loss) -> Vec<Tensor> {
    let mut all = Vec::new();
    loss.with_tensors(&mut |tensor| {
        all.push(tensor.shallow_clone());
        tensor.shallow_clone()
    });
    all
}

fn assert_same_tensors(a: &dyn Loss, b: &dyn Loss) {
    let (a, b) = (all_tensors(a), all_tensors(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert!(a.kind() == b.kind() && a.equal(b), "{a} {b}");
    }
}

/// The loss of the options, written as JSON and as TOML, and read again.
pub(super) fn round_trip<L: Described + fmt::Debug>(fields: Fields) {
    let loss = L::f_read(fields, Place::DEFAULT).unwrap();
    let json = serde_json::to_string(&loss).unwrap();
    let toml = toml::to_string(&loss).unwrap();
    let names: Vec<String> = L::OPTIONS.iter().map(|option| format!("\"{option}\":")).collect();
    assert!(names.iter().all(|name| json.contains(name)), "{json}");
    for again in [serde_json::from_str::<L>(&json).unwrap(), toml::from_str::<L>(&toml).unwrap()] {
        assert_eq!(format!("{again:?}"), format!("{loss:?}"));
        assert_same_tensors(&again, &loss);
    }
    assert_eq!(serde_json::to_string(&L::default()).unwrap(), "{}");
}

#[test]
fn every_loss_is_written_and_read_again() {
    for entry in LOSSES {
        let mut options = every_option(entry);
        let value: Value = serde_json::from_value(options.clone()).unwrap();
        let Value::Map(fields) = &value else { panic!("options are fields") };
        (entry.round_trip)(Fields { loss: entry.names[0], fields: fields.iter().collect() });

        options["loss"] = json!(entry.names[1]);
        options["when_empty"] = json!("zero");
        let any: AnyLoss = serde_json::from_value(options.clone()).unwrap();
        let json = serde_json::to_string(&any).unwrap();
        options["loss"] = json!(entry.names[0]);
        assert_eq!(serde_json::from_str::<Json>(&json).unwrap(), options);
        let toml = toml::to_string(&any).unwrap();
        for again in [serde_json::from_str::<AnyLoss>(&json).unwrap(), toml::from_str::<AnyLoss>(&toml).unwrap()] {
            assert_same_tensors(&again, &any);
            assert_eq!(serde_json::to_value(&again).unwrap(), options);
        }
    }
}

#[test]
fn what_is_written_is_what_is_not_the_default() {
    let written = |description: Json| serde_json::to_value(serde_json::from_value::<AnyLoss>(description).unwrap());
    let same = [
        (json!("nn.MSELoss"), json!({"loss": "mse"})),
        (json!({"loss": "huber", "delta": 1, "reduction": "mean"}), json!({"loss": "huber"})),
        (
            json!({"loss": "softmax_focal", "ignore_index": null}),
            json!({"loss": "softmax_focal", "ignore_index": "none"}),
        ),
        (
            json!({"loss": "sum", "terms": ["L1Loss", {"factor": 1, "loss": "dice", "name": "overlap", "eps": 0.5}]}),
            json!({"loss": "sum", "terms": [{"loss": "l1"}, {"loss": "dice", "eps": 0.5, "name": "overlap"}]}),
        ),
        (
            json!({"loss": "sum", "terms": [{"factor": 0.5, "loss": "sum", "terms": ["mse"]}]}),
            json!({"loss": "sum", "terms": [{"loss": "sum", "terms": [{"loss": "mse"}], "factor": 0.5}]}),
        ),
    ];
    for (description, expected) in same {
        let loss: AnyLoss = serde_json::from_value(description.clone()).unwrap();
        let again: AnyLoss = toml::from_str(&toml::to_string(&loss).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), expected);
        assert_eq!(written(description).unwrap(), expected);
        assert_eq!(written(expected.clone()).unwrap(), expected);
    }
    let loss = SoftmaxFocalLoss::new().ignore_index(None).alpha(Tensor::from_slice(&[0.1_f32, 0.7]));
    assert_eq!(serde_json::to_string(&loss).unwrap(), r#"{"alpha":[0.1,0.7],"ignore_index":"none"}"#);
    let loss = DiceLoss::new().activation(Activation::None);
    assert_eq!(serde_json::to_string(&loss).unwrap(), r#"{"activation":"none"}"#);
    let function = DiceLoss::new().other_act(|input| Ok(input.f_sigmoid()?));
    let error = serde_json::to_string(&function).unwrap_err().to_string();
    assert_eq!(error, "loss dice: option activation: data cannot say a function");
}

#[test]
fn tensors_are_written_in_their_kind() {
    let numbers = || Tensor::from_slice(&[0.1, f64::INFINITY, -3.0, 1e-300]).view([2, 2]);
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        let loss = MseLoss::new().weight(numbers().to_kind(kind));
        let json = serde_json::to_string(&loss).unwrap();
        assert_same_tensors(&serde_json::from_str::<MseLoss>(&json).unwrap(), &loss);
        assert_same_tensors(&toml::from_str::<MseLoss>(&toml::to_string(&loss).unwrap()).unwrap(), &loss);
        // Moved, it has the numbers of the data, and not those of the kind that it was read in first.
        let any: AnyLoss = serde_json::from_str(&json.replacen('{', "{\"loss\": \"mse\", ", 1)).unwrap();
        let double = any.f_to(Device::Cpu, Kind::Double).unwrap();
        let number = all_tensors(&double)[0].double_value(&[0, 0]);
        assert!([Kind::Half, Kind::BFloat16].contains(&kind) || number == 0.1, "{number}");
    }
    for scalar in [Tensor::from(0.1_f32), Tensor::from(0.1_f64), Tensor::from(true)] {
        let loss = MseLoss::new().weight(scalar);
        let json = serde_json::to_string(&loss).unwrap();
        assert_same_tensors(&serde_json::from_str::<MseLoss>(&json).unwrap(), &loss);
    }
    let complex = MseLoss::new().weight(numbers().to_kind(Kind::ComplexFloat));
    let error = serde_json::to_string(&complex).unwrap_err().to_string();
    assert_eq!(error, "loss mse: option weight: a tensor of kind ComplexFloat cannot be written as data");
    let undefined = MseLoss::new().weight(Tensor::new());
    assert!(serde_json::to_string(&undefined).unwrap_err().to_string().starts_with("loss mse: option weight: "));
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The losses of this folder, and those with parameters.
const WITHOUT_DATA: [&str; 7] = [
    "AnyLoss",
    "WeightedSum",
    "LinearCrossEntropyLoss",
    "ArcFaceLoss",
    "CosFaceLoss",
    "ProxyAnchorLoss",
    "ProxyNcaLoss",
];

#[test]
fn no_loss_is_missing() {
    let mut paths = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut paths);
    let (mut losses, mut others) = (BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let source = fs::read_to_string(path).unwrap();
        let word = |start: &str| start.split([' ', ':', ';']).next().unwrap().to_owned();
        losses.extend(source.split("\nimpl Loss for ").skip(1).map(word));
        // Those that are declared without a name in data.
        let unnamed =
            |start: &&str| start.split_once(";\n").is_some_and(|(name, _)| name.chars().all(char::is_alphanumeric));
        others.extend(source.split("\npub struct ").skip(1).filter(unnamed).map(word));
    }
    losses.retain(|name| !WITHOUT_DATA.contains(&name.as_str()));
    let listed: BTreeSet<String> = LOSSES.iter().map(|entry| entry.names[1].to_owned()).collect();
    assert_eq!(listed, losses, "the list of losses, and those of the sources");
    others.retain(|name| name.ends_with("Loss"));
    assert!(others.len() > 10, "{others:?}");
    for name in others {
        assert!(OTHERS.contains(&name.as_str()), "{name} is not among the losses of other arguments");
    }
}

#[test]
fn a_described_loss_is_the_one_set_in_rust() {
    let logits = (Tensor::arange(24, (Kind::Float, Device::Cpu)) * 1.7).sin().view([2, 3, 4]);
    let target = Tensor::from_slice(&[0_i64, 1, 2, 1, 0, 0, 2, 1]).view([2, 4]);
    let weight = || Tensor::from_slice(&[0.5_f32, 1.0, 2.0]);
    let cases: [(Json, Box<dyn Loss>); 4] = [
        (
            json!({"loss": "nn.CrossEntropyLoss", "weight": [0.5, 1, 2], "label_smoothing": 0.1, "ignore_index": 1}),
            Box::new(CrossEntropyLoss::new().weight(weight()).label_smoothing(0.1).ignore_index(1)),
        ),
        (
            json!({"loss": "softmax_focal", "alpha": [0.5, 1, 2], "ignore_index": null}),
            Box::new(SoftmaxFocalLoss::new().alpha(weight()).ignore_index(None)),
        ),
        (json!("dice_cross_entropy"), Box::new(crate::DiceCrossEntropyLoss::new())),
        (
            json!({"loss": "sum", "terms": [
                {"factor": 0.5, "loss": "dice", "activation": "softmax", "classes": [1, 2]},
                {"name": "ce", "loss": "cross_entropy", "weight": [0.5, 1, 2]},
            ]}),
            Box::new(
                WeightedSum::new()
                    .term("dice", 0.5, DiceLoss::new().activation(Activation::Softmax).classes(&[1, 2]))
                    .term("ce", 1.0, CrossEntropyLoss::new().weight(weight())),
            ),
        ),
    ];
    for (description, loss) in cases {
        let described: AnyLoss = serde_json::from_value(description).unwrap();
        let value = with_backend(crate::Backend::Composite, || described.forward(&logits, &target));
        assert_eq!(value, with_backend(crate::Backend::Composite, || loss.forward(&logits, &target)), "{described:?}");
        let double = described.f_to(Device::Cpu, Kind::Double).unwrap();
        let wide = double.forward(&logits.to_kind(Kind::Double), &target);
        assert!((wide.double_value(&[]) - value.double_value(&[])).abs() < 1e-6);
    }
    let mask = json!({"loss": "sigmoid_focal", "mask": [[true], [false]]});
    let masked: AnyLoss = serde_json::from_value(mask).unwrap();
    let zeros = Tensor::zeros([2, 3], (Kind::Double, Device::Cpu));
    let loss = masked.f_to(Device::Cpu, Kind::Double).unwrap().forward(&zeros, &zeros);
    // Three of the six elements count, each with (1 − ½)² · 0.75 · log 2.
    assert!((loss.double_value(&[]) - 0.25 * 0.75 * 2_f64.ln()).abs() < 1e-12);
}

#[test]
fn terms_of_a_sum_can_be_logged_and_have_parts() {
    let toml =
        "loss = 'sum'\n[[terms]]\nloss = 'mse'\nfactor = 2\n[[terms]]\nloss = 'l1'\nname = 'absolute'\nfactor = 0";
    let sum: AnyLoss = toml::from_str(toml).unwrap();
    let (input, target) = (Tensor::from_slice(&[1_f32, 2.0]), Tensor::from_slice(&[0_f32, 4.0]));
    let output = sum.f_forward_terms(&input, &target).unwrap();
    let terms: Vec<_> =
        output.terms.iter().map(|term| (&*term.name, term.factor, term.loss.double_value(&[]))).collect();
    assert_eq!((output.total.double_value(&[]), &*terms), (5.0, &[("mse", 2.0, 2.5), ("absolute", 0.0, 1.5)][..]));
    assert_eq!(sum.f_term_parts(&input, &target).unwrap()[0].parts.numerator().double_value(&[]), 5.0);
    let one: AnyLoss = serde_json::from_str("\"mse\"").unwrap();
    assert_eq!(one.f_forward_terms(&input, &target).unwrap().terms[0].name, "mse");
    assert_eq!(one.f_parts(&input, &target).unwrap().f_value().unwrap().double_value(&[]), 2.5);
}

#[test]
fn wrong_descriptions_say_what_is_wrong() {
    let cases = [
        (
            json!({"loss": "mse", "reduction": "avg"}),
            "loss mse: option reduction is \"avg\", expected one of \"none\", \"mean\", \"sum\"",
        ),
        (json!({"loss": "mse", "broadcast": "yes"}), "loss mse: option broadcast is \"yes\", expected true or false"),
        (json!({"loss": "nn.MSELoss", "lr": 1}), "loss mse has no option lr, only weight, broadcast, reduction"),
        (json!({"loss": "huber", "delta": "1.0"}), "loss huber: option delta is \"1.0\", expected a number"),
        (json!({"loss": "huber", "delta": null}), "loss huber: option delta is null, expected a number"),
        (json!({"loss": "nll", "ignore_index": 1.5}), "loss nll: option ignore_index is 1.5, expected an integer"),
        (
            json!({"loss": "nll", "weight": [[1, 2], [3]]}),
            "loss nll: option weight is [[1, 2], [3]], expected a list of numbers, or such lists of one length nested in lists",
        ),
        (
            json!({"loss": "dice_focal", "overlap": {"loss": "mse"}}),
            "loss dice_focal: option overlap: there is no loss \"mse\", only dice, jaccard, tversky, focal_tversky, generalized_dice",
        ),
        (
            json!({"loss": "dice_focal", "overlap": {"loss": "dice", "smooth_nr": []}}),
            "loss dice_focal: option overlap: loss dice: option smooth_nr is [], expected a number",
        ),
        (
            json!({"loss": "sum", "terms": [{"loss": "mse", "weight": 0.5}]}),
            "term 0: option weight is 0.5, but what a term counts is its factor",
        ),
        (
            json!({"loss": "sum", "terms": ["mse", {"loss": "l1", "factor": "1"}]}),
            "term 1: factor is \"1\", expected a number",
        ),
        (
            json!({"loss": "sum", "terms": []}),
            "loss sum: option terms is [], expected a list of losses, each with a factor, which is 1 by default",
        ),
        (
            json!({"loss": "sum"}),
            "loss sum: option terms is missing, expected a list of losses, each with a factor, which is 1 by default",
        ),
    ];
    for (description, expected) in cases {
        let error = serde_json::from_value::<AnyLoss>(description.clone()).unwrap_err().to_string();
        assert_eq!(error, expected);
        // TOML has no null.
        if let Ok(text) = toml::to_string(&description) {
            let error = toml::from_str::<AnyLoss>(&text).unwrap_err().to_string();
            assert!(error.trim().ends_with(expected), "{error}");
        }
    }
    let starts = [
        (json!({"loss": "dic"}), "there is no loss \"dic\"; did you mean dice, "),
        (json!({"lose": "dice"}), "field loss is missing, expected one of l1, mse, "),
        (json!({"loss": 3}), "field loss is 3, expected one of l1, mse, "),
        (json!(3), "3 is no loss, expected one of l1, mse, "),
    ];
    for (description, start) in starts {
        let error = serde_json::from_value::<AnyLoss>(description).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
    let twice = serde_json::from_str::<AnyLoss>(r#"{"loss": "mse", "loss": "l1"}"#).unwrap_err().to_string();
    assert!(twice.starts_with("field loss is given twice"), "{twice}");
    let single = serde_json::from_str::<MseLoss>(r#"{"reduction": 1}"#).unwrap_err().to_string();
    assert!(single.starts_with("loss mse: option reduction is 1, expected one of"), "{single}");
    let single = serde_json::from_str::<MseLoss>("[]").unwrap_err().to_string();
    assert!(single.starts_with("[] is no loss mse, expected its options"), "{single}");
}

#[test]
fn values_are_looked_at_when_the_loss_is_read() {
    let cases = [
        (json!({"loss": "huber", "delta": -1}), "loss huber: option delta is -1, expected a number > 0"),
        (
            json!({"loss": "cross_entropy", "label_smoothing": 2}),
            "loss cross_entropy: option label_smoothing is 2, expected a number in [0, 1]",
        ),
        (
            json!({"loss": "softmax_focal", "gamma": -1}),
            "loss softmax_focal: option gamma is -1, expected a finite number of at least 0",
        ),
        (
            json!({"loss": "sum", "terms": ["mse", {"loss": "dice", "smooth_nr": -1}]}),
            "term 1: loss dice: option smooth_nr is -1, expected a finite number of at least 0",
        ),
        (
            json!({"loss": "sum", "terms": ["mse", {"loss": "huber", "name": "mse"}]}),
            "loss sum: option name is mse twice, expected a name for each term",
        ),
        (
            json!({"loss": "dice_focal", "focal": {"loss": "sigmoid_focal", "gamma": -1}}),
            "loss dice_focal: option focal: loss sigmoid_focal: option gamma is -1, expected a finite number of at least 0",
        ),
    ];
    for (description, expected) in cases {
        let error = serde_json::from_value::<AnyLoss>(description).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
    let single = serde_json::from_str::<CrossEntropyLoss>(r#"{"label_smoothing": -0.5}"#).unwrap_err().to_string();
    assert!(single.starts_with("loss cross_entropy: option label_smoothing is -0.5, expected a number in"), "{single}");
    let loss: AnyLoss = serde_json::from_str(r#"{"loss": "huber"}"#).unwrap();
    let error = loss.f_to(Device::Cpu, Kind::Int64).unwrap_err().to_string();
    assert_eq!(error, "kind has kind Int64, expected a floating kind");
    assert_eq!(AnyLoss::options("nope"), None);
    assert_eq!(AnyLoss::options("mse"), Some(&["weight", "broadcast", "reduction"][..]));
    assert_eq!(AnyLoss::names().count(), LOSSES.len() + 1);
}

#[test]
fn spellings_of_other_libraries_are_names() {
    let names = [
        ("CrossEntropy", "cross_entropy"),
        ("F.cross_entropy", "cross_entropy"),
        ("torch.nn.CrossEntropyLoss", "cross_entropy"),
        ("cross_entropy_loss", "cross_entropy"),
        ("nn.BCEWithLogitsLoss", "bce_with_logits"),
        ("F.binary_cross_entropy_with_logits", "bce_with_logits"),
        ("NLLLoss", "nll"),
        ("KLDivLoss", "kl_div"),
        ("MultiLabelSoftMargin", "multi_label_soft_margin"),
        ("F.multilabel_margin_loss", "multi_label_margin"),
        ("monai.losses.DiceCELoss", "dice_cross_entropy"),
        ("monai.losses.SoftclDiceLoss", "soft_cldice"),
        ("monai.losses.HausdorffDTLoss", "hausdorff_dt"),
        ("smp.losses.SoftBCEWithLogitsLoss", "soft_bce_with_logits"),
        ("timm.loss.AsymmetricLossMultiLabel", "asymmetric_multi_label"),
        ("NTXentLoss", "nt_xent"),
        ("weighted sum", "sum"),
    ];
    for (name, expected) in names {
        let description = json!({"loss": name, "terms": ["mse"]});
        let description = if expected == "sum" { description } else { json!(name) };
        let loss: AnyLoss = serde_json::from_value(description).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loss.name(), expected, "{name}");
    }
    let mut spellings: BTreeMap<String, &str> = BTreeMap::new();
    for entry in LOSSES {
        for name in entry.names {
            let other = spellings.insert(spelling(name), entry.names[0]).unwrap_or(entry.names[0]);
            assert_eq!(other, entry.names[0], "{name} is spelt as another loss");
        }
    }
}

#[test]
fn misspelt_names_are_answered_by_the_nearest() {
    let message = |name: &str| serde_json::from_value::<AnyLoss>(json!(name)).unwrap_err().to_string();
    for (name, first) in [
        ("dyce", "dice"),
        ("crossentropi", "cross_entropy"),
        ("bce_with_logit", "bce_with_logits"),
        ("huberr", "huber"),
        ("jacard", "jaccard"),
        ("MSE2", "mse"),
    ] {
        let start = format!("there is no loss {name:?}; did you mean {first}, ");
        assert!(message(name).starts_with(&start), "{}", message(name));
        assert_eq!(message(name).matches(',').count(), 2);
    }
    let focal = message("focal");
    assert!(focal.contains("softmax_focal") && focal.contains("sigmoid_focal"), "{focal}");
    assert_eq!(message("ctc"), "loss \"ctc\" takes other arguments: use CtcLoss in Rust");
    assert_eq!(
        message("nn.GaussianNLLLoss"),
        "loss \"nn.GaussianNLLLoss\" takes other arguments: use GaussianNllLoss in Rust"
    );
    let option = serde_json::from_str::<AnyLoss>(r#"{"loss": "cross_entropy", "label_smothing": 0.1}"#);
    let expected = "loss cross_entropy has no option label_smothing, only weight, ignore_index, label_smoothing, \
                    invalid_values, mean_over, reduction";
    assert_eq!(option.unwrap_err().to_string(), expected);
    let option = serde_json::from_str::<AnyLoss>(r#"{"loss": "dice", "ignoreindex": 1}"#).unwrap_err().to_string();
    assert!(option.starts_with("loss dice has no option ignoreindex; did you mean ignore_index, "), "{option}");
}

#[test]
fn a_mean_over_nothing_can_be_described() {
    let none = Tensor::zeros([0, 3], (Kind::Float, Device::Cpu));
    let read = |rule| serde_json::from_value::<AnyLoss>(json!({"loss": "mse", "when_empty": rule}));
    assert_eq!(read("zero").unwrap().forward(&none, &none).double_value(&[]), 0.0);
    assert!(read("nan").unwrap().forward(&none, &none).double_value(&[]).is_nan());
    let error = read("error").unwrap().f_forward(&none, &none).unwrap_err().to_string();
    assert_eq!(error, "the mean is over nothing: an empty batch, or one of which nothing counts");
    let error = read("one").unwrap_err().to_string();
    assert_eq!(error, "loss mse: option when_empty is \"one\", expected one of \"nan\", \"zero\", \"error\"");
    let sum: AnyLoss = serde_json::from_str(
        r#"{"loss": "sum", "terms": [{"loss": "mse", "when_empty": "zero"}, {"loss": "l1", "when_empty": "zero"}]}"#,
    )
    .unwrap();
    assert_eq!(sum.clone().f_to(Device::Cpu, Kind::Float).unwrap().forward(&none, &none).double_value(&[]), 0.0);
}

/// So that ranks of other losses or options are an error.
#[cfg(feature = "distributed")]
#[test]
fn every_loss_says_what_it_is() {
    for name in AnyLoss::names() {
        let options = match name {
            "sum" => json!({"loss": name, "terms": ["mse"]}),
            _ => json!(name),
        };
        // Some need options that have no default.
        let Ok(loss) = serde_json::from_value::<AnyLoss>(options) else { continue };
        assert!(loss.described().is_some(), "{name}");
    }
}
