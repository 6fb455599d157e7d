"""A rank of torch.distributed, for tests/distributed/python.rs.

`rank.py mixed` is a rank among those of tch-losses; `rank.py oracle` one of a job of Python alone, whose losses are those
of the libraries. Both print what they computed as one line of JSON, `name: numbers`.
"""

import json
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F

FORM = 0x74636831
KINDS = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4,
    torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}
LENGTH, FIXED = 24, 8


class GuardedGroup:
    """The collectives of tch-losses in Python: before each, ranks gather what they are about to do."""

    def __init__(self):
        self.calls = 0

    def _exchange(self, operation, detail=0, tensor=None, differentiable=False, backward_of=-1):
        kind, size = (KINDS[torch.int64], []) if tensor is None else (KINDS[tensor.dtype], list(tensor.shape))
        record = [FORM, self.calls, operation, detail, kind, int(differentiable), backward_of, len(size), *size]
        record = torch.tensor(record + [0] * (LENGTH - len(record)))
        self.calls += 1
        records = [torch.empty_like(record) for _ in range(dist.get_world_size())]
        dist.all_gather(records, record)
        same = [other.clone() for other in records]
        if operation == 2:
            for other in same:
                other[FIXED] = 0
        if any(not torch.equal(other, same[0]) for other in same):
            raise RuntimeError(f"ranks disagree: {[other.tolist() for other in records]}")
        return records

    def barrier(self):
        self._exchange(0)

    def all_reduce(self, tensor, differentiable=False, backward_of=-1):
        """The sum, and the number of the call."""
        call = self.calls
        self._exchange(1, 0, tensor, differentiable, backward_of)
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        total = tensor.detach().to(torch.float32 if half else tensor.dtype, copy=True).contiguous()
        dist.all_reduce(total)
        return total.to(tensor.dtype), call

    def all_gather(self, tensor):
        """The tensors of all ranks, which may differ in their first dimension."""
        lengths = [int(record[FIXED]) for record in self._exchange(2, 0, tensor)]
        filled = tensor.new_zeros((max(lengths), *tensor.shape[1:]))
        filled[: tensor.shape[0]] = tensor.detach()
        parts = [torch.empty_like(filled) for _ in lengths]
        dist.all_gather(parts, filled)
        return torch.cat([part[:length] for part, length in zip(parts, lengths)])


class SumOverRanks(torch.autograd.Function):
    """`Group::f_sum_data_parallel`."""

    @staticmethod
    def forward(ctx, group, tensor):
        total, ctx.call = group.all_reduce(tensor, differentiable=tensor.requires_grad)
        ctx.group = group
        return total

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.group.all_reduce(grad, backward_of=ctx.call)[0]


def numbers(rows, columns, shift):
    """The same in every program."""
    return (torch.arange(rows * columns, dtype=torch.float64) * 0.7 + shift).sin().view(rows, columns)


def mixed():
    group, rank = GuardedGroup(), dist.get_rank()
    total, _ = group.all_reduce(torch.full((3,), rank + 1, dtype=torch.bfloat16))
    gathered = group.all_gather(numbers(rank + 1, 2, rank))
    logits = numbers(4, 3, rank).requires_grad_()
    target = torch.tensor([rank % 3, -100, 1, -100 if rank % 2 else 2])
    numerator = F.cross_entropy(logits, target, reduction="sum")
    count = (target != -100).sum().double()
    sums = SumOverRanks.apply(group, torch.stack([numerator, count]))
    loss = sums[0] / sums[1]
    loss.backward()
    group.barrier()
    # After this rank and before the others: all of them are told.
    try:
        group.all_reduce(torch.zeros(2 if rank else 3))
        disagreed = 0
    except RuntimeError:
        disagreed = 1
    return {
        "total": total.double(), "gathered": gathered, "loss": loss, "gradient": averaged(logits.grad),
        "disagreed": torch.tensor(float(disagreed)),
    }


def averaged(gradient):
    total = gradient.clone()
    if dist.get_world_size() > 1 and sys.argv[1] == "oracle":
        dist.all_reduce(total)
        return total / dist.get_world_size()
    return total


def oracle():
    import lightly.loss
    import torch.distributed.nn.functional as differentiable
    from lightly.utils.dist import gather
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    rank, rows = dist.get_rank(), 6
    labels = (torch.arange(rows) + rank) % 3
    scale = torch.tensor(3.0, dtype=torch.float64)

    def clip(image, text, local):
        # ClipLoss of open_clip with gather_with_grad.
        image, text = F.normalize(image), F.normalize(text)
        images = torch.cat(differentiable.all_gather(image))
        texts = torch.cat(differentiable.all_gather(text))
        own = torch.arange(rows) + rank * rows if local else torch.arange(images.shape[0])
        rows_of_images, rows_of_texts = (image, text) if local else (images, texts)
        of_images = F.cross_entropy(scale * rows_of_images @ texts.T, own)
        return (of_images + F.cross_entropy(scale * rows_of_texts @ images.T, own)) / 2

    def siglip(image, text):
        # SigLipLoss of open_clip with dist_impl="gather".
        image, texts = F.normalize(image), torch.cat(gather(F.normalize(text)))
        signs = -torch.ones(rows, texts.shape[0], dtype=torch.float64)
        signs[torch.arange(rows), torch.arange(rows) + rank * rows] = 1
        return -F.logsigmoid(signs * (scale * image @ texts.T - 2)).sum() / rows

    def vicreg(a, b):
        return lightly.loss.VICRegLoss(gather_distributed=True)(a * 0.1, b * 0.1)

    def over_ranks(loss, embeddings):
        # The wrapper's loss is W times the loss, so that the average of gradients is right.
        return DistributedLossWrapper(loss)(embeddings, labels)

    losses = {
        "clip": lambda a, b: clip(a, b, local=False),
        "clip local": lambda a, b: clip(a, b, local=True),
        "siglip": siglip,
        "vicreg": vicreg,
        "sup con": lambda a, b: over_ranks(SupConLoss(), a),
        "nt xent": lambda a, b: over_ranks(NTXentLoss(), a),
    }
    results = {}
    for name, loss in losses.items():
        weight = numbers(5, 4, 9).requires_grad_()
        embed = [numbers(rows, 5, 3 * rank) @ weight, numbers(rows, 5, 3 * rank + 1) @ weight]
        value = loss(*embed)
        value.backward()
        times = dist.get_world_size() if name in ("sup con", "nt xent") else 1
        results[name] = averaged(value.detach()) / times
        results[f"gradient of {name}"] = averaged(weight.grad)
    return results


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    results = {"mixed": mixed, "oracle": oracle}[sys.argv[1]]()
    print(json.dumps({name: tensor.detach().flatten().tolist() for name, tensor in results.items()}), flush=True)
    dist.destroy_process_group()
    # Python's shutdown may end a thread of libtorch that still runs, and then the process with SIGABRT.
    os._exit(0)


if __name__ == "__main__":
    main()
