//! The default of the process for invalid values. In a test binary of its own, and in one test, since it is for the
//! process.

use tch::{Device, Kind, Tensor};
use tch_losses::{AnyLoss, CrossEntropyLoss, DiceCrossEntropyLoss, InvalidValues, Loss};

#[test]
fn the_default_is_that_of_the_moment_a_loss_is_made() {
    let logits = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
    let beyond = Tensor::from_slice(&[7_i64]);
    let is_error = |loss: &dyn Loss| loss.f_forward(&logits, &beyond).is_err();
    let before = CrossEntropyLoss::new();
    assert!(is_error(&before));

    InvalidValues::set_default(InvalidValues::Nan);
    assert_eq!(InvalidValues::default(), InvalidValues::Nan);
    assert!(is_error(&before), "a loss keeps what it has");
    for loss in [CrossEntropyLoss::new(), CrossEntropyLoss::default()] {
        assert!(loss.forward(&logits, &beyond).double_value(&[]).is_nan());
    }
    let elsewhere = std::thread::spawn(|| format!("{:?}", CrossEntropyLoss::new())).join().unwrap();
    assert!(elsewhere.contains("invalid_values: Nan"), "{elsewhere}");
    assert!(is_error(&CrossEntropyLoss::new().invalid_values(InvalidValues::Error)), "what is said counts");

    // Data mean the same in every process.
    let nan = r#"{"invalid_values":"nan"}"#;
    assert_eq!(serde_json::to_string(&CrossEntropyLoss::new()).unwrap(), nan);
    assert_eq!(serde_json::to_string(&before).unwrap(), "{}");
    let within = serde_json::to_string(&DiceCrossEntropyLoss::new()).unwrap();
    assert_eq!(within.matches("nan").count(), 2, "of both parts: {within}");
    let again: DiceCrossEntropyLoss = serde_json::from_str(&within).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), within);
    let read: CrossEntropyLoss = serde_json::from_str("{}").unwrap();
    let any: AnyLoss = serde_json::from_str(r#""cross_entropy""#).unwrap();
    assert!(is_error(&read) && is_error(&any));
    let read: CrossEntropyLoss = serde_json::from_str(nan).unwrap();
    assert!(!is_error(&read));

    InvalidValues::set_default(InvalidValues::Error);
    assert!(is_error(&CrossEntropyLoss::new()));
    assert_eq!(serde_json::to_string(&CrossEntropyLoss::new()).unwrap(), "{}");
}
