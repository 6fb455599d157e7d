//! How many bytes a rank sends, by the algorithms of Gloo.

use tch::Tensor;

use super::Group;

impl Group {
    /// The bytes that this rank has sent to the other ranks so far: those of the tensors and of what ranks tell each
    /// other before each call, without the headers of the network. With W ranks these are
    ///
    /// | call | bytes of a tensor of n bytes |
    /// |---|---|
    /// | a sum or another reduction | 2 (W − 1) / W · n, a ring |
    /// | a gather | (W − 1) · n, where n is the longest part of a rank |
    /// | a broadcast | n for each rank that this one passes it on to, a tree |
    /// | a shift | n |
    /// | before each of these, a barrier, and a copy | (W − 1) · 232 |
    ///
    /// Single precision is sent for half precision that is reduced. A backward pass through a sum or a gather is a sum of
    /// the gradient, and one through a shift a shift.
    pub fn sent_bytes(&self) -> u64 {
        self.sent()
    }
}

/// The bytes of a tensor's numbers.
pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Each block goes around the ring.
pub(super) fn all_gather(world: usize, block: usize) -> usize {
    (world - 1) * block
}

/// Each rank has a part of the tensor reduced, and then gathered, around the ring.
pub(super) fn all_reduce(world: usize, bytes: usize) -> usize {
    2 * (world - 1) * bytes / world
}

/// A tree in which the rank `place` places after the root passes the tensor on to those 1, 2, 4, … places after it, as
/// far as these are greater than its own.
pub(super) fn broadcast(world: usize, place: usize, bytes: usize) -> usize {
    let steps = (0..usize::BITS).map(|step| 1_usize << step).take_while(|step| *step < world);
    steps.filter(|step| *step > place && place + step < world).count() * bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_but_the_root_gets_a_broadcast_once() {
        for world in 1..20 {
            assert_eq!((0..world).map(|place| broadcast(world, place, 8)).sum::<usize>(), 8 * (world - 1));
        }
    }

    #[test]
    fn one_rank_sends_nothing() {
        assert_eq!([all_gather(1, 8), all_reduce(1, 8), broadcast(1, 0, 8)], [0; 3]);
    }
}
