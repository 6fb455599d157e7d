//! What a rank asks of its group. Ranks exchange it before each collective, because c10d ends the process or returns
//! wrong numbers where they ask for different things.

use tch::Kind;

use super::Reduce;
use super::purpose::{self, Purpose};
use crate::LossError;

/// Dimensions that a tensor may have.
const MOST_DIMENSIONS: usize = 16;
/// The numbers before the purpose.
const CALL: usize = 8;
/// The numbers before the sizes.
const FIXED: usize = CALL + purpose::LENGTH;
/// How many 64-bit integers a record has. Each rank of a group, of whatever program, sends as many.
pub(super) const LENGTH: usize = FIXED + MOST_DIMENSIONS;
/// Bits of the number of a record that has Booleans.
const DIFFERENTIABLE: i64 = 1;
const ON_GPU: i64 = 2;
/// The place of that number.
const FLAGS: usize = 5;
/// The first number of a record, which says that it is one, and of which form.
const FORM: i64 = 0x7463_6832;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Barrier,
    AllReduce(Reduce),
    AllGather,
    Broadcast {
        root: usize,
    },
    /// Each rank sends to the one so many places after it.
    Shift {
        by: i64,
    },
    /// Nothing is sent: all ranks have the tensor, whose gradient they will sum up.
    Copy,
    /// Nothing: the call of this rank is an error, which the others are told.
    Refuse,
}

impl Operation {
    /// Two numbers that tell it apart from all others.
    fn code(self) -> [i64; 2] {
        match self {
            Operation::Barrier => [0, 0],
            Operation::AllReduce(reduce) => [1, i64::from(reduce.code())],
            Operation::AllGather => [2, 0],
            Operation::Broadcast { root } => [3, root as i64],
            Operation::Refuse => [4, 0],
            Operation::Shift { by } => [5, by],
            Operation::Copy => [6, 0],
        }
    }

    /// The name of the method that asks for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Barrier => "barrier",
            Operation::AllReduce(_) => "all_reduce",
            Operation::AllGather => "all_gather",
            Operation::Broadcast { .. } => "broadcast",
            Operation::Refuse => "refusal",
            Operation::Shift { .. } => "shift",
            Operation::Copy => "copy_replicated",
        }
    }
}

/// What a rank asks for, with the tensor that it brings.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) kind: Kind,
    pub(super) size: Vec<i64>,
    /// Whether a gradient will come back: a backward pass is a collective, too.
    pub(super) differentiable: bool,
    /// Whether NCCL could send the tensor.
    pub(super) on_gpu: bool,
    /// Of a backward pass: the number of the call whose gradient it is. So a graph that is gone through in another
    /// order on another rank is an error.
    pub(super) backward_of: Option<u64>,
}

/// The numbers of a request.
pub(super) type Record = [i64; LENGTH];

impl Request {
    /// A request without a tensor.
    pub(super) fn bare(operation: Operation) -> Self {
        Self { operation, kind: Kind::Int64, size: vec![], differentiable: false, on_gpu: false, backward_of: None }
    }

    /// The numbers of the call `sequence`, which counts the calls of the group.
    pub(super) fn f_record(&self, sequence: u64, purpose: &Purpose) -> Result<Record, LossError> {
        if self.size.len() > MOST_DIMENSIONS {
            let expected = format!("at most {MOST_DIMENSIONS} dimensions");
            return Err(LossError::Shape { argument: "tensor", expected, actual: self.size.clone() });
        }
        let [operation, detail] = self.operation.code();
        let flags = i64::from(self.differentiable) * DIFFERENTIABLE + i64::from(self.on_gpu) * ON_GPU;
        let mut record = [0; LENGTH];
        record[..CALL].copy_from_slice(&[
            FORM,
            sequence as i64,
            operation,
            detail,
            kind_code(self.kind),
            flags,
            self.backward_of.map_or(-1, |call| call as i64),
            self.size.len() as i64,
        ]);
        record[CALL..FIXED].copy_from_slice(&purpose.numbers);
        record[FIXED..FIXED + self.size.len()].copy_from_slice(&self.size);
        Ok(record)
    }
}

/// The size of the first dimension in a record.
pub(super) fn first_size(record: &Record) -> i64 {
    record[FIXED]
}

/// Whether the tensors of all ranks are on GPUs. Otherwise all send them from the CPU.
pub(super) fn all_on_gpus(records: &[Record]) -> bool {
    records.iter().all(|record| record[FLAGS] & ON_GPU != 0)
}

/// Whether all ranks ask for the same. The first dimension of what is gathered or exchanged may differ, and so may the devices.
pub(super) fn agree(records: &[Record]) -> bool {
    let uneven = [Operation::AllGather, Operation::Shift { by: 0 }].map(|operation| operation.code()[0]);
    let uneven = uneven.contains(&records[0][2]);
    let refused = records.iter().any(|record| record[2] == Operation::Refuse.code()[0]);
    let same = |a: &Record, b: &Record| {
        let alike = |place: usize| match place {
            FLAGS => (a[FLAGS] ^ b[FLAGS]) & !ON_GPU == 0,
            FIXED if uneven => true,
            _ => a[place] == b[place],
        };
        (0..CALL).chain(FIXED..LENGTH).all(alike)
    };
    !refused && agree_on_loss(records) && records.iter().all(|record| record[0] == FORM && same(record, &records[0]))
}

fn agree_on_loss(records: &[Record]) -> bool {
    purpose::agree(records.iter().map(|record| &record[CALL..FIXED]))
}

/// What each rank asks for, in words, on a rank whose own loss is `own`.
pub(super) fn describe(records: &[Record], own: &Purpose) -> String {
    let is_record = records.iter().all(|record| record[0] == FORM);
    if agree_on_loss(records) || !is_record {
        return together(records, words);
    }
    let losses = together(records, |record| purpose::words(&record[CALL..FIXED]));
    match &own.text {
        Some(text) => format!("{losses}; the loss of this rank is {text}"),
        None => losses,
    }
}

/// Words for each rank; ranks of the same words stand together.
fn together(records: &[Record], words: impl Fn(&Record) -> String) -> String {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for (rank, record) in records.iter().enumerate() {
        let words = words(record);
        match groups.iter_mut().find(|(other, _)| *other == words) {
            Some((_, ranks)) => ranks.push(rank.to_string()),
            None => groups.push((words, vec![rank.to_string()])),
        }
    }
    let line = |(words, ranks): (String, Vec<String>)| {
        let plural = if ranks.len() == 1 { "" } else { "s" };
        format!("rank{plural} {}: {words}", ranks.join(", "))
    };
    groups.into_iter().map(line).collect::<Vec<_>>().join("; ")
}

fn words(record: &Record) -> String {
    let [form, sequence, operation, detail, kind, flags, backward_of, dimensions] = record[..CALL] else {
        return "nothing".into();
    };
    if form != FORM {
        return "a call of another program or version".into();
    }
    let loss = purpose::name(&record[CALL..FIXED]).map(|name| format!(", for {name}")).unwrap_or_default();
    let name = match operation {
        0 => return format!("barrier, call {sequence}{loss}"),
        1 => format!("all_reduce ({})", Reduce::named(detail)),
        2 => "all_gather".into(),
        3 => format!("broadcast from rank {detail}"),
        4 => return format!("an error of its own before the call{loss}"),
        5 => format!("shift by {detail}"),
        6 => "copy_replicated".into(),
        _ => "an unknown operation".into(),
    };
    let size = &record[FIXED..FIXED + dimensions.clamp(0, MOST_DIMENSIONS as i64) as usize];
    let gradient = if flags & DIFFERENTIABLE != 0 { ", with a gradient" } else { "" };
    let backward = if backward_of >= 0 { format!(", backward of call {backward_of}") } else { String::new() };
    format!("{name} of {} {size:?}{gradient}{backward}, call {sequence}{loss}", kind_name(kind))
}

/// The numbers of kinds in libtorch, which are those of `torch.dtype` in every program.
const KINDS: [(Kind, i64); 10] = [
    (Kind::Uint8, 0),
    (Kind::Int8, 1),
    (Kind::Int16, 2),
    (Kind::Int, 3),
    (Kind::Int64, 4),
    (Kind::Half, 5),
    (Kind::Float, 6),
    (Kind::Double, 7),
    (Kind::Bool, 11),
    (Kind::BFloat16, 15),
];

/// No other kinds are sent.
fn kind_code(kind: Kind) -> i64 {
    KINDS.iter().find(|(other, _)| *other == kind).map_or(-1, |(_, code)| *code)
}

fn kind_name(code: i64) -> String {
    let found = KINDS.iter().find(|(_, other)| *other == code);
    found.map_or_else(|| format!("kind {code}"), |(kind, _)| format!("{kind:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(operation: Operation, kind: Kind, size: &[i64]) -> Record {
        Request { kind, size: size.to_vec(), ..Request::bare(operation) }.f_record(7, &Purpose::default()).unwrap()
    }

    #[test]
    fn only_the_first_dimension_of_what_is_gathered_may_differ() {
        let gather = |size: &[i64]| record(Operation::AllGather, Kind::Float, size);
        assert!(agree(&[gather(&[2, 3]), gather(&[5, 3])]));
        assert!(!agree(&[gather(&[2, 3]), gather(&[2, 4])]));
        assert!(!agree(&[gather(&[2, 3]), gather(&[2, 3, 1])]));
        let reduce = |size: &[i64]| record(Operation::AllReduce(Reduce::Sum), Kind::Float, size);
        assert!(agree(&[reduce(&[2]), reduce(&[2])]));
        assert!(!agree(&[reduce(&[2]), reduce(&[3])]));
        assert!(!agree(&[gather(&[2]), reduce(&[2])]));
        assert!(!agree(&[reduce(&[2]), record(Operation::AllReduce(Reduce::Max), Kind::Float, &[2])]));
        let refusal = record(Operation::Refuse, Kind::Float, &[2]);
        assert!(!agree(&[refusal, refusal]));
    }

    #[test]
    fn tensors_may_be_on_different_devices() {
        let sum = |on_gpu| {
            let request = Request { on_gpu, ..Request::bare(Operation::AllReduce(Reduce::Sum)) };
            request.f_record(7, &Purpose::default()).unwrap()
        };
        let mixed = [sum(true), sum(false)];
        assert!(agree(&mixed) && !all_on_gpus(&mixed));
        assert!(all_on_gpus(&[sum(true), sum(true)]));
        assert_eq!(describe(&mixed, &Purpose::default()), "ranks 0, 1: all_reduce (sum) of Int64 [], call 7");
    }

    #[test]
    fn ranks_that_ask_for_the_same_stand_together() {
        let sum = |kind, size: &[i64]| record(Operation::AllReduce(Reduce::Sum), kind, size);
        let records = [sum(Kind::Float, &[4]), sum(Kind::Double, &[4]), sum(Kind::Float, &[4])];
        assert_eq!(
            describe(&records, &Purpose::default()),
            "ranks 0, 2: all_reduce (sum) of Float [4], call 7; rank 1: all_reduce (sum) of Double [4], call 7"
        );
    }

    #[test]
    fn too_many_dimensions_are_an_error() {
        let request = Request { size: vec![1; 17], ..Request::bare(Operation::AllGather) };
        assert!(matches!(request.f_record(0, &Purpose::default()), Err(LossError::Shape { .. })));
    }
}
