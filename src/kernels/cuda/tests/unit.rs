//! Rows of length 1.

use tch::{Kind, Tensor};

use super::compare::{Guarded, KINDS, results, unaligned};
use super::compiled::{assert_compile, installed_nvrtc};
use super::{ORDER, assert_caught, assert_near, emulated, excess, randn, sources_of};
use crate::autograd::{Place, Tape, f_taped};
use crate::kernels::f_unit;
use crate::numeric::f_unit_rows;
use crate::{Backend, LossError, with_backend};

const LEAST: f64 = 1e-12;

/// Unit vectors of this kind by kernels, and by tensor operations.
fn both(rows: &Tensor, kind: Kind) -> [Vec<Tensor>; 2] {
    let by_kernels = |tensors: &[Tensor]| {
        let steps = |tape: &mut Tape, places: &[Place]| f_unit(tape, places[0], kind, LEAST);
        let never = |_: &[Tensor]| -> Result<Tensor, LossError> { panic!("no composite") };
        f_taped(&[&tensors[0]], steps, never).unwrap()
    };
    let composite = |tensors: &[Tensor]| f_unit_rows(&tensors[0].to_kind(kind), 2.0, LEAST).unwrap();
    let tensors = [rows.shallow_clone()];
    let actual = emulated(|| results(&tensors, &[0], &by_kernels));
    [actual, with_backend(Backend::Composite, || results(&tensors, &[0], &composite))]
}

fn check(name: &str, rows: &Tensor, kind: Kind) {
    let [actual, expected] = both(rows, kind);
    for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert_eq!((actual.kind(), actual.size()), (expected.kind(), expected.size()));
        let own = if position == 0 { kind } else { rows.kind() };
        let name = format!("{name} of {:?} {:?}, result {position}", rows.size(), rows.kind());
        assert_near(&name, &actual.to_kind(Kind::Double), &expected.to_kind(Kind::Double), own);
    }
}

/// The kinds of rows and of their unit vectors.
fn kinds() -> impl Iterator<Item = (Kind, Kind)> {
    let pairs = |own| [Kind::Float, Kind::Double].map(move |kind| (own, kind));
    KINDS.into_iter().flat_map(pairs).filter(|(own, kind)| (*own, *kind) != (Kind::Double, Kind::Float))
}

#[test]
fn rows_of_any_length_and_kind_have_length_1() {
    for order in [1, 3] {
        ORDER.set(order);
        for (own, kind) in kinds() {
            for (rows, columns) in [(1, 1), (9, 5), (10, 64), (3, 1023), (2, 1032), (2, 2049), (8200, 3)] {
                if (rows > 1000 || order > 1) && own != Kind::Float {
                    continue;
                }
                let guarded = Guarded::new(&randn([rows, columns]).to_kind(own));
                check("guarded rows", &guarded.tensor.shallow_clone(), kind);
                check("views", &unaligned(&guarded.tensor), kind);
            }
        }
    }
    ORDER.set(1);
    check("strides", &randn([7, 9]).transpose(0, 1), Kind::Double);
}

#[test]
fn unusual_rows_are_as_in_tensor_operations() {
    for (own, kind) in kinds() {
        let rows = randn([9, 6]).to_kind(own);
        let _ = rows.get(0).fill_(0.0);
        let _ = rows.get(1).fill_(1e-13);
        let _ = rows.get(2).get(3).fill_(f64::NAN);
        let _ = rows.get(3).fill_(f64::NAN);
        let _ = rows.get(4).get(0).fill_(f64::INFINITY);
        let _ = rows.get(5).fill_(if own == Kind::Half { 6e4 } else { 1e30 });
        let [_, by_one] = [rows.get(6).fill_(0.0), rows.get(6).get(2).fill_(-3.0)];
        assert_eq!(by_one.double_value(&[]), -3.0);
        rows.get(7).copy_(&(rows.get(8) * 2.0));
        let [actual, expected] = both(&rows, kind);
        assert_near(
            &format!("unusual rows {own:?}"),
            &actual[0].to_kind(Kind::Double),
            &expected[0].to_kind(Kind::Double),
            kind,
        );
        // What has no direction has no gradient.
        let gradients = actual[1].get(0).abs().max().double_value(&[]);
        assert_eq!(gradients, 0.0);
        for row in [1, 5, 6, 7] {
            let [actual, expected] = [&actual[1], &expected[1]].map(|all| all.get(row).to_kind(Kind::Double));
            // Of a short row the gradient is large.
            let scale = expected.abs().max().double_value(&[]).max(1.0);
            assert_near(&format!("gradient {row} {own:?}"), &(actual / scale), &(expected / scale), own);
        }
        // One direction has one unit vector.
        assert_eq!(actual[0].get(7), actual[0].get(8));
        assert_eq!(actual[0].get(6).get(2).double_value(&[]), -1.0);
    }
}

#[test]
fn mutations_of_unit_vectors_are_caught() {
    let is_right = |rows: &Tensor| {
        let [actual, expected] = both(rows, Kind::Float);
        let near =
            |(a, b): (&Tensor, &Tensor)| excess(&a.to_kind(Kind::Double), &b.to_kind(Kind::Double), Kind::Float) <= 0.0;
        actual.iter().zip(&expected).all(near)
    };
    for (text, other, size) in [
        ("column += GROUP * LENGTH", "column += GROUP * LENGTH * 2", [5, 200]),
        ("fmax(largest, fabs(numbers_of(pack.elements[i])))", "fmax(largest, numbers_of(pack.elements[i]))", [40, 2]),
        ("largest <= Result(call.least) ? Result(1) : largest", "Result(1)", [40, 4]),
        ("length < Result(call.least) ? Result(call.least) : length", "length", [40, 4]),
        ("unit * along", "Result(0)", [5, 9]),
        ("/ length / scale));", "/ length));", [5, 9]),
        ("own < least ? Result(0) : sum", "sum", [40, 4]),
        ("zeros ? Result(0) :", "", [40, 4]),
        ("row += groups()", "row += 2 * groups()", [9000, 2]),
    ] {
        let rows = randn(size).to_kind(Kind::Float);
        let _ = rows.get(1).fill_(0.0);
        rows.get(2).copy_(&(rows.get(3).sign() * 4e-13));
        rows.get(4).copy_(&(-rows.get(4).abs() * 1e25));
        assert_caught(text, other, || is_right(&rows));
    }
}

#[test]
fn sources_of_unit_vectors_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let sources = sources_of(|| {
        for (own, kind) in kinds() {
            for columns in [8, 1032] {
                let rows = randn([2, columns]).to_kind(own);
                let steps = |tape: &mut Tape, places: &[Place]| f_unit(tape, places[0], kind, LEAST);
                let _ = f_taped(&[&rows], steps, |inputs| f_unit_rows(&inputs[0], 2.0, LEAST)).unwrap();
            }
        }
    });
    assert_eq!(sources.len(), 14);
    assert_compile(&nvrtc, sources);
}
