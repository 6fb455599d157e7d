#!/usr/bin/env python3
"""Trains a net in PyTorch for a while and writes how it stands, and what PyTorch makes of it next.

Usage: examples/resume_from_pytorch.py [FILE]

FILE is examples/data/resume.safetensors by default, the one that `cargo run --example resume_from_pytorch` reads. It
holds float32 tensors, and the number of steps:

* weights.NAME, exp_avg.NAME, exp_avg_sq.NAME and step: the weights and Adam's state after 40 steps.
* for each loss LOSS.losses: the losses of the next 20 steps from there, each over the same 64 images;
  LOSS.gradients.NAME: the gradients of the first of them; LOSS.weights.NAME: the weights after the first of them;
  LOSS.last.NAME: those after the last.
"""

from __future__ import annotations

import copy
import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

DATA = Path(__file__).resolve().parent / "data"
STEPS_BEFORE, STEPS_AFTER, BATCH = 40, 20, 64
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
WEIGHT = torch.linspace(0.5, 1.5, 10)


def one_hot(classes: Tensor) -> Tensor:
    return F.one_hot(classes, 10).float()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, classes: F.cross_entropy(logits, classes, WEIGHT, label_smoothing=0.1),
    "huber": lambda logits, classes: F.huber_loss(logits, one_hot(classes), delta=0.5),
    "bce_with_logits": lambda logits, classes: F.binary_cross_entropy_with_logits(logits, one_hot(classes)),
    "sigmoid_focal": lambda logits, classes: sigmoid_focal_loss(logits, one_hot(classes), reduction="mean"),
}


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "resume.safetensors"
    # The sums of a product of matrices depend on how many threads share it.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, classes = first_digits(STEPS_BEFORE + 1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), **ADAM)
    for batch in range(STEPS_BEFORE):
        step(net, optimizer, F.cross_entropy, images[batch], classes[batch])

    tensors = {f"weights.{name}": weights for name, weights in net.state_dict().items()}
    for name, weights in net.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[weights][moment]
    tensors["step"] = torch.tensor(STEPS_BEFORE)

    for name, loss in LOSSES.items():
        tensors |= {f"{name}.{key}": value for key, value in go_on(net, optimizer, loss, images[-1], classes[-1])}
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, file)


def go_on(net, optimizer, loss, images, classes):
    """What comes next, of copies."""
    net, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), **ADAM)
    optimizer.load_state_dict(state)
    losses = []
    for number in range(STEPS_AFTER):
        losses.append(step(net, optimizer, loss, images, classes))
        if number == 0:
            yield from ((f"gradients.{name}", weights.grad.clone()) for name, weights in net.named_parameters())
            yield from ((f"weights.{name}", weights.clone()) for name, weights in net.state_dict().items())
    yield from ((f"last.{name}", weights) for name, weights in net.state_dict().items())
    yield "losses", torch.stack(losses)


def step(net, optimizer, loss, images, classes) -> Tensor:
    value = loss(net(images), classes)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return value.detach()


def first_digits(batches: int) -> tuple[Tensor, Tensor]:
    """The first images of the file, in batches; from the start again where they are used up."""
    lines = gzip.decompress((DATA / "digits.csv.gz").read_bytes()).decode().split()
    numbers = torch.tensor([[int(field) for field in line.split(",")] for line in lines])
    numbers = numbers[torch.arange(batches * BATCH) % len(numbers)].view(batches, BATCH, 65)
    return numbers[:, :, :64].view(batches, BATCH, 1, 8, 8) / 16, numbers[:, :, 64]


if __name__ == "__main__":
    main()
