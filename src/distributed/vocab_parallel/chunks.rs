//! The linear layer in chunks of rows, whose logits are never all in memory.

use std::sync::Arc;

use super::*;
use crate::sequence::ClassShard;

/// The classes of this rank, and the group that knows the others.
#[derive(Debug)]
struct Shard {
    classes: Classes,
    group: Group,
    /// Whether the input needs a gradient, which all ranks sum up, and whether anything does. Ranks compare both.
    input_needs: bool,
    any_needs: bool,
}

impl ClassShard for Shard {
    fn first(&self) -> i64 {
        self.classes.first
    }

    fn all(&self) -> i64 {
        self.classes.all
    }

    fn f_greatest(&self, own: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.group.f_reduced(own, Reduce::Max, self.any_needs, None)?.0)
    }

    fn f_sum(&self, own: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.group.f_reduced(own, Reduce::Sum, self.input_needs, None)?.0)
    }
}

impl VocabParallelCrossEntropy {
    /// The loss of a layer, once the layer and the target are checked.
    pub(super) fn f_in_chunks(
        &self,
        [input, linear_weight, target]: [&Tensor; 3],
        linear_bias: Option<&Tensor>,
        chunking: Chunking,
        group: &Group,
    ) -> Result<Tensor, LossError> {
        let needed = needed(&[&[input, linear_weight][..], linear_bias.as_slice()].concat());
        let (classes, call) = f_classes(linear_weight.size()[0], target, needed[0], group)?;
        // From here on every rank has the same error.
        f_check_range(target, &target.f_eq_number(self.ignore_index)?, classes.all)?;
        check::class_weight(self.weight.as_ref(), input, classes.all)?;
        let [rows, features] = [input.size()[0], input.size()[1]];
        let size = chunking.f_rows(rows, features, classes.all)?;
        if rows == 0 {
            let logits = f_linear(&group.f_copy_of(input, call)?, linear_weight, linear_bias)?;
            return self.f_of_classes(&logits, target, classes, group);
        }
        let shard = Shard { classes, group: group.clone(), input_needs: needed[0], any_needs: needed.contains(&true) };
        let whole = self.whole();
        whole.f_of_shard([input, linear_weight, target], linear_bias, size, Arc::new(shard))
    }
}
