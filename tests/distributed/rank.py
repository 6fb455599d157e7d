"""A rank of torch.distributed, for tests/distributed/python.rs.

`rank.py mixed` is a rank among those of tch-losses; `rank.py oracle` one of a job of Python alone, whose losses are those
of the libraries. Both print what they computed as one line of JSON, `name: numbers`.
"""

import importlib.util
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

FORM = 0x74636832
KINDS = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4,
    torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}
# A record: 8 numbers of the call, 5 of the loss that it is for, all 0 where that is not said, and 16 of the shape.
CALL, FIXED, LENGTH = 8, 13, 29
BARRIER, ALL_REDUCE, ALL_GATHER, SHIFT = 0, 1, 2, 5


class GuardedGroup:
    """The collectives of tch-losses in Python: before each, ranks gather what they are about to do."""

    def __init__(self):
        self.calls = 0

    def _exchange(self, operation, detail=0, tensor=None, differentiable=False, backward_of=-1):
        kind, size = (KINDS[torch.int64], []) if tensor is None else (KINDS[tensor.dtype], list(tensor.shape))
        call = [FORM, self.calls, operation, detail, kind, int(differentiable), backward_of, len(size)]
        record = call + [0] * (FIXED - CALL) + size
        record = torch.tensor(record + [0] * (LENGTH - len(record)))
        self.calls += 1
        records = [torch.empty_like(record) for _ in range(dist.get_world_size())]
        dist.all_gather(records, record)
        same = [other.clone() for other in records]
        for other in same:
            # A rank that says which loss it computes agrees with one that does not.
            other[CALL:FIXED] = 0
            if operation in (ALL_GATHER, SHIFT):
                other[FIXED] = 0
        if any(not torch.equal(other, same[0]) for other in same):
            raise RuntimeError(f"ranks disagree: {[other.tolist() for other in records]}")
        return records

    def barrier(self):
        self._exchange(BARRIER)

    def all_reduce(self, tensor, differentiable=False, backward_of=-1):
        """The sum, and the number of the call."""
        call = self.calls
        self._exchange(ALL_REDUCE, 0, tensor, differentiable, backward_of)
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        total = tensor.detach().to(torch.float32 if half else tensor.dtype, copy=True).contiguous()
        dist.all_reduce(total)
        return total.to(tensor.dtype), call

    def all_gather(self, tensor):
        """The tensors of all ranks, which may differ in their first dimension."""
        lengths = [int(record[FIXED]) for record in self._exchange(ALL_GATHER, 0, tensor)]
        filled = tensor.new_zeros((max(lengths), *tensor.shape[1:]))
        filled[: tensor.shape[0]] = tensor.detach()
        parts = [torch.empty_like(filled) for _ in lengths]
        dist.all_gather(parts, filled)
        return torch.cat([part[:length] for part, length in zip(parts, lengths)])

    def shift(self, tensor, by, differentiable=False, backward_of=-1):
        """The tensor of the rank `by` places before this one, and the number of the call."""
        call, rank, world = self.calls, dist.get_rank(), dist.get_world_size()
        records = self._exchange(SHIFT, by, tensor, differentiable, backward_of)
        came = tensor.new_empty((int(records[(rank - by) % world][FIXED]), *tensor.shape[1:]))
        receiving = dist.irecv(came, (rank - by) % world)
        dist.isend(tensor.detach().contiguous(), (rank + by) % world).wait()
        receiving.wait()
        return came, call


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


class Shift(torch.autograd.Function):
    """`Group::f_shift_data_parallel`."""

    @staticmethod
    def forward(ctx, group, tensor, by):
        came, ctx.call = group.shift(tensor, by, differentiable=tensor.requires_grad)
        ctx.group, ctx.by = group, by
        return came

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.group.shift(grad, -ctx.by, backward_of=ctx.call)[0], None


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
    leaf = numbers(rank + 1, 2, rank).requires_grad_()
    came = Shift.apply(group, leaf, 1)
    (came.square().sum() * (rank + 1)).backward()
    # After this rank and before the others: all of them are told.
    try:
        group.all_reduce(torch.zeros(2 if rank else 3))
        disagreed = 0
    except RuntimeError:
        disagreed = 1
    return {
        "total": total.double(), "gathered": gathered, "loss": loss, "gradient": averaged(logits.grad),
        "disagreed": torch.tensor(float(disagreed)), "came": came, "gradient of what went": leaf.grad,
    }


def averaged(gradient):
    total = gradient.clone()
    if dist.get_world_size() > 1 and sys.argv[1] == "oracle":
        dist.all_reduce(total)
        return total / dist.get_world_size()
    return total


def open_clip_loss():
    """open_clip's losses alone: the package would import all of its models, for seconds in each rank."""
    package = importlib.util.find_spec("open_clip")
    path = Path(package.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle():
    import lightly.loss
    from lightly.utils.dist import gather
    from pytorch_metric_learning.losses import NTXentLoss, ProxyAnchorLoss, SupConLoss
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    rank, world, rows = dist.get_rank(), dist.get_world_size(), 6
    labels = (torch.arange(rows) + rank) % 3
    scale = torch.tensor(3.0, dtype=torch.float64)
    open_clip = open_clip_loss()

    def clip(image, text, local, through=True):
        criterion = open_clip.ClipLoss(local, through, rank=rank, world_size=world)
        return criterion(F.normalize(image), F.normalize(text), scale)

    def siglip(image, text, how):
        criterion = open_clip.SigLipLoss(rank=rank, world_size=world, dist_impl=how)
        bias = torch.tensor(-2.0, dtype=torch.float64)
        return criterion(F.normalize(image), F.normalize(text), scale, bias)

    def barlow_twins(a, b):
        # Statistics of the whole batch, as the paper's have by a synchronised batch norm; lightly's gather_distributed
        # normalises each rank's batch by itself.
        return lightly.loss.BarlowTwinsLoss()(torch.cat(gather(a)), torch.cat(gather(b)))

    def vicreg(a, b):
        return lightly.loss.VICRegLoss(gather_distributed=True)(a * 0.1, b * 0.1)

    def over_ranks(loss, embeddings):
        # The wrapper's loss is W times the loss, so that the average of gradients is right.
        return DistributedLossWrapper(loss)(embeddings, labels)

    proxy_anchor = ProxyAnchorLoss(num_classes=3, embedding_size=4)
    proxy_anchor.proxies = torch.nn.Parameter(numbers(3, 4, 7))

    losses = {
        "clip": lambda a, b: clip(a, b, local=False),
        "clip local": lambda a, b: clip(a, b, local=True),
        "clip, own gradients": lambda a, b: clip(a, b, local=False, through=False),
        "clip local, own gradients": lambda a, b: clip(a, b, local=True, through=False),
        "siglip": lambda a, b: siglip(a, b, "gather"),
        "siglip, reduced": lambda a, b: siglip(a, b, "reduce"),
        "siglip neighbours": lambda a, b: siglip(a, b, "shift"),
        "siglip neighbours, both ways": lambda a, b: siglip(a, b, "bidir"),
        "barlow twins": barlow_twins,
        "vicreg": vicreg,
        "nt xent of views": lightly.loss.NTXentLoss(temperature=0.25, gather_distributed=True),
        "proxy anchor": lambda a, b: over_ranks(proxy_anchor, a),
        "sup con": lambda a, b: over_ranks(SupConLoss(), a),
        "nt xent": lambda a, b: over_ranks(NTXentLoss(), a),
    }
    results = {}
    for name, loss in losses.items():
        weight = numbers(5, 4, 9).requires_grad_()
        embed = [numbers(rows, 5, 3 * rank) @ weight, numbers(rows, 5, 3 * rank + 1) @ weight]
        value = loss(*embed)
        value.backward()
        times = world if name in ("sup con", "nt xent", "proxy anchor") else 1
        results[name] = averaged(value.detach()) / times
        results[f"gradient of {name}"] = averaged(weight.grad)
    return results | dino() | vocabulary()


def dino():
    """The loss of three steps, and the centre after them."""
    import lightly.loss

    rank, results = dist.get_rank(), {}
    # lightly rounds temperatures to single precision; these are the same in it.
    criterion = lightly.loss.DINOLoss(5, teacher_temp=0.5, student_temp=0.25, center_momentum=0.6).double()
    for step in range(3):
        weight = numbers(3, 5, 2).requires_grad_()
        views = [numbers(4, 3, 10 * step + 4 * rank + view) for view in range(4)]
        teacher = [view @ numbers(3, 5, 1) for view in views[:2]]
        loss = criterion(teacher, [view @ weight for view in views])
        loss.backward()
        results[f"dino {step}"] = averaged(loss.detach())
        results[f"gradient of dino {step}"] = averaged(weight.grad)
        results[f"centre of dino {step}"] = criterion.center.clone()
    return results


def vocabulary():
    """Cross entropy of a linear layer, of the whole layer on each rank, with a z-loss and a soft cap."""
    input, layer, bias = numbers(7, 5, 1).mul(9).requires_grad_(), numbers(8, 5, 2).requires_grad_(), numbers(1, 8, 3)
    target = torch.tensor([0, 7, 3, -100, 5, 2, 6])
    logits = 4 * torch.tanh((input @ layer.T + bias) / 4)
    entropy = F.cross_entropy(logits, target, weight=numbers(1, 8, 4)[0].abs() + 0.1, label_smoothing=0.1)
    loss = entropy + 0.01 * logits.logsumexp(1).square()[target != -100].mean()
    loss.backward()
    return {
        "vocabulary": loss, "gradient of vocabulary: input": input.grad, "gradient of vocabulary: layer": layer.grad,
    }


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
