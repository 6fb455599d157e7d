"""Losses of language models, from the papers' formulas: preferences between answers, and distillation.

Answer by answer and token by token. Half precision is computed in single precision.
"""

from __future__ import annotations

from typing import Any

import torch

from papers import reduced


def single(tensor: torch.Tensor | None) -> torch.Tensor | None:
    half = tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(torch.float32) if half else tensor


def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """-log(1 + exp(-x))"""
    return -torch.logaddexp(torch.zeros_like(x), -x)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(log_sigmoid(x))


def check_pairs(*log_probs: torch.Tensor | None) -> None:
    if len({each.shape for each in log_probs if each is not None}) != 1:
        raise ValueError("log-probabilities of different shapes")


def check_beta(beta: float) -> None:
    if beta <= 0:
        raise ValueError(f"beta is {beta}")


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor | None = None,
    reference_rejected: torch.Tensor | None = None,
    beta: float = 0.1,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    tau: float = 0.05,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 7 of https://arxiv.org/abs/2305.18290, and what the papers that `DpoVariant` names make of it."""
    check_pairs(chosen, rejected, reference_chosen, reference_rejected)
    check_beta(beta)
    own, smoothing = chosen.dtype, label_smoothing
    ratio_chosen, ratio_rejected = single(chosen), single(rejected)
    if reference_chosen is not None:
        ratio_chosen = ratio_chosen - single(reference_chosen)
        ratio_rejected = ratio_rejected - single(reference_rejected)
    good, bad = beta * ratio_chosen, beta * ratio_rejected
    z = beta * (ratio_chosen - ratio_rejected)
    if variant == "sigmoid":
        losses = -((1 - smoothing) * log_sigmoid(z) + smoothing * log_sigmoid(-z))
    elif variant == "hinge":
        losses = torch.where(z < 1, 1 - z, torch.zeros_like(z))
    elif variant == "exo_pair":
        target = z.new_tensor([1 - smoothing, smoothing]).log()
        logs = torch.stack([log_sigmoid(z), log_sigmoid(-z)], -1)
        losses = (logs.exp() * (logs - target)).sum(-1)
    elif variant == "nca_pair":
        losses = -log_sigmoid(good) - (log_sigmoid(-good) + log_sigmoid(-bad)) / 2
    elif variant == "robust":
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"label_smoothing is {smoothing}")
        losses = -((1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)) / (1 - 2 * smoothing)
    elif variant == "bco_pair":
        losses = -log_sigmoid(good) - log_sigmoid(-bad)
    elif variant == "sppo_hard":
        losses = (ratio_chosen - 1 / (2 * beta)) ** 2 + (ratio_rejected + 1 / (2 * beta)) ** 2
    elif variant == "apo_zero":
        losses = sigmoid(-good) + sigmoid(bad)
    elif variant == "apo_down":
        losses = sigmoid(good) + sigmoid(-z)
    elif variant == "discopop":
        share = log_sigmoid(z / tau)
        losses = -log_sigmoid(z) * sigmoid(-z / tau) + torch.exp(share - z)
    else:
        raise ValueError(f"no variant {variant!r}")
    return reduced(losses, reduction).to(own)


def ipo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor | None = None,
    reference_rejected: torch.Tensor | None = None,
    beta: float = 0.1,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 17 of https://arxiv.org/abs/2310.12036."""
    check_pairs(chosen, rejected, reference_chosen, reference_rejected)
    check_beta(beta)
    gap = single(chosen) - single(rejected)
    if reference_chosen is not None:
        gap = gap - (single(reference_chosen) - single(reference_rejected))
    return reduced((gap - 1 / (2 * beta)) ** 2, reduction).to(chosen.dtype)


def orpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, beta: float = 0.1, reduction: str = "mean"
) -> torch.Tensor:
    """Equation 7 of https://arxiv.org/abs/2403.07691, of probabilities that are not 1."""
    check_pairs(chosen, rejected)
    check_beta(beta)

    def log_odds(log_p: torch.Tensor) -> torch.Tensor:
        return log_p - torch.log(-torch.expm1(log_p))

    losses = -beta * log_sigmoid(log_odds(single(chosen)) - log_odds(single(rejected)))
    return reduced(losses, reduction).to(chosen.dtype)


def simpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    beta: float = 0.1,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 6 of https://arxiv.org/abs/2405.14734."""
    check_pairs(chosen, rejected)
    check_beta(beta)
    z = beta * single(chosen) - beta * single(rejected) - gamma
    losses = -((1 - label_smoothing) * log_sigmoid(z) + label_smoothing * log_sigmoid(-z))
    return reduced(losses, reduction).to(chosen.dtype)


def cpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, **options: Any) -> torch.Tensor:
    """The preference term of equation 5 of https://arxiv.org/abs/2401.08417."""
    return simpo_loss(chosen, rejected, gamma=0.0, **options)


def kto_loss(
    policy: torch.Tensor,
    reference: torch.Tensor | None,
    labels: torch.Tensor,
    kl: torch.Tensor | None = None,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 8 of https://arxiv.org/abs/2402.01306; no gradient goes through the divergence."""
    check_pairs(policy, reference, labels)
    check_beta(beta)
    if labels.dtype != torch.bool:
        raise ValueError("labels are Booleans")
    gain = single(policy) - (0 if reference is None else single(reference))
    gain = gain - (0 if kl is None else single(kl.detach()))
    good, bad = desirable_weight * sigmoid(-beta * gain), undesirable_weight * sigmoid(beta * gain)
    return reduced(torch.where(labels, good, bad), reduction).to(policy.dtype)


def token_log_probs(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None = None,
) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
    """The log-probabilities of the tokens that count, for each answer; and the mean logit of each."""
    if input.dim() != 3 or input.shape[:2] != target.shape or input.shape[2] != weight.shape[1]:
        raise ValueError("shapes do not fit")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError("the bias does not fit")
    answers, means = [], []
    for states, tokens in zip(single(input), target.tolist()):
        logs, logits = [], []
        for state, token in zip(states, tokens):
            z = single(weight) @ state
            z = z if bias is None else z + single(bias)
            logits.append(z.detach().mean())
            z = z if softcap is None else softcap * torch.tanh(z / softcap)
            if token == ignore_index:
                continue
            if not 0 <= token < len(weight):
                raise ValueError(f"there is no token {token}")
            logs.append(z[token] - torch.logsumexp(z, 0))
        answers.append(logs)
        means.append(torch.stack(logits).mean())
    return answers, torch.stack(means)


def of_answers(answers: list[list[torch.Tensor]], average: bool, like: torch.Tensor) -> torch.Tensor:
    """The sum or the mean of each answer, 0 for none."""
    zero = like.sum() * 0
    sums = [torch.stack(logs).sum() if logs else zero for logs in answers]
    return torch.stack([total / max(len(logs), 1) if average else total for total, logs in zip(sums, answers)])


def reference_log_probs(
    ref_input: torch.Tensor | None,
    ref_weight: torch.Tensor | None,
    ref_bias: torch.Tensor | None,
    target: torch.Tensor,
    average: bool,
    ignore_index: int,
    softcap: float | None,
) -> torch.Tensor | None:
    if ref_input is None:
        return None
    with torch.no_grad():
        answers, _ = token_log_probs(ref_input, ref_weight, target, ref_bias, ignore_index, softcap)
        return of_answers(answers, average, single(ref_input))


LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "orpo": orpo_loss, "simpo": simpo_loss, "cpo": cpo_loss}


def linear_preference(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ref_input: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    nll_target: torch.Tensor | None = None,
    loss: str = "dpo",
    average: bool = False,
    alpha: float = 0.0,
    ignore_index: int = -100,
    softcap: float | None = None,
    chunk: int = 4,
    beta: float = 0.1,
    **options: Any,
) -> tuple:
    """The loss and its metrics, in Liger's order. `chunk` says nothing about the value."""
    if len(input) % 2:
        raise ValueError("an odd number of answers")
    pairs = len(input) // 2
    answers, logits = token_log_probs(input, weight, target, bias, ignore_index, softcap)
    policy = of_answers(answers, average, single(input))
    sides = [policy[:pairs], policy[pairs:]]
    rewards = [beta * side.detach() for side in sides]
    reference = reference_log_probs(ref_input, ref_weight, ref_bias, target, average, ignore_index, softcap)
    if reference is not None:
        sides += [reference[:pairs], reference[pairs:]]
        rewards = [beta * (policy - given).detach() for policy, given in zip(sides[:2], sides[2:])]
    chosen = answers[:pairs]
    if nll_target is not None:
        chosen, _ = token_log_probs(input[:pairs], weight, nll_target, bias, ignore_index, softcap)
    logs = [log for answer in chosen for log in answer]
    nll = -torch.stack(logs).sum() / len(logs) if logs else single(input).sum() * 0
    total = LOSSES[loss](*sides, beta=beta, **options) + alpha * nll
    means = [logits[:pairs].mean(), logits[pairs:].mean()]
    return (total, *(side.detach() for side in sides[:2]), *means, nll.detach(), *rewards)


def linear_kto(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ref_input: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    kl: torch.Tensor | None = None,
    average: bool = False,
    ignore_index: int = -100,
    softcap: float | None = None,
    chunk: int = 4,
    beta: float = 0.1,
    **options: Any,
) -> tuple:
    """The loss, and log-probability, mean logit and reward of each answer."""
    answers, logits = token_log_probs(input, weight, target, bias, ignore_index, softcap)
    policy = of_answers(answers, average, single(input))
    reference = reference_log_probs(ref_input, ref_weight, ref_bias, target, average, ignore_index, softcap)
    total = kto_loss(policy, reference, labels, kl, beta=beta, **options)
    rewards = beta * (policy if reference is None else policy - reference)
    return total, policy.detach(), logits, rewards.detach()


def distillation_loss(
    input: torch.Tensor,
    teacher: torch.Tensor,
    target: torch.Tensor | None = None,
    divergence: str = "jsd",
    beta: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    soft_weight: float = 0.5,
    hard_weight: float = 0.5,
    ignore_index: int = -100,
    reduction: str = "mean",
    parts: bool = False,
) -> torch.Tensor | tuple:
    """https://arxiv.org/abs/1503.02531 and section 2 of https://arxiv.org/abs/2306.13649, row by row.

    `parts` returns the soft and the hard loss as well.
    """
    if input.shape != teacher.shape or temperature <= 0 or not 0 <= beta <= 1:
        raise ValueError("no such loss")
    own, dim = input.dtype, min(1, input.dim() - 1)
    classes, places = input.shape[dim], input.select(dim, 0).shape
    if target is not None and target.shape != places:
        raise ValueError("the target does not fit")
    rows, teachers = (single(each).movedim(dim, -1).reshape(-1, classes) for each in (input, teacher))
    labels = [None] * len(rows) if target is None else target.reshape(-1).tolist()
    square = temperature**2 if temperature_squared else 1.0
    soft, hard, counted = [], [], 0
    for x, z, label in zip(rows, teachers, labels):
        if label is not None and label == ignore_index:
            soft.append(x.new_zeros(()))
            hard.append(x.new_zeros(()))
            continue
        counted += 1
        soft.append(square * divergence_of(x, z, divergence, beta, temperature))
        hard.append(x.new_zeros(()) if label is None else torch.logsumexp(x, 0) - x[label])
    soft, hard = torch.stack(soft), torch.stack(hard)
    losses = soft_weight * soft + hard_weight * hard
    if reduction == "none":
        return losses.reshape(places).to(own)
    divisor = max(counted, 1) if reduction == "mean" else 1
    if parts:
        return losses.sum() / divisor, (soft.sum() / divisor).detach(), (hard.sum() / divisor).detach()
    return (losses.sum() / divisor).to(own)


def divergence_of(
    x: torch.Tensor, z: torch.Tensor, divergence: str, beta: float, temperature: float
) -> torch.Tensor:
    """Between the student's and the teacher's distribution of one row; a class of probability 0 adds nothing."""
    if divergence == "cosine":
        return 1 - (x * z).sum() / (x.norm() * z.norm())
    log_q, log_p = torch.log_softmax(x / temperature, 0), torch.log_softmax(z / temperature, 0)

    def kl(of: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        possible = of > -torch.inf
        return (of[possible].exp() * (of[possible] - other[possible])).sum()

    if divergence == "forward" or divergence == "jsd" and beta == 0:
        return kl(log_p, log_q)
    if divergence == "reverse" or divergence == "jsd" and beta == 1:
        return kl(log_q, log_p)
    shares = x.new_tensor([beta, 1 - beta]).log()
    mixture = torch.logsumexp(torch.stack([log_p + shares[0], log_q + shares[1]]), 0)
    return beta * kl(log_p, mixture) + (1 - beta) * kl(log_q, mixture)


def linear_distillation(
    student_input: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_input: torch.Tensor,
    teacher_weight: torch.Tensor,
    target: torch.Tensor | None = None,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    chunk: int = 4,
    **options: Any,
) -> tuple:
    """The loss, its soft and its hard part. `chunk` says nothing about the value."""
    student = torch.nn.functional.linear(*map(single, (student_input, student_weight, student_bias)))
    with torch.no_grad():
        teacher = torch.nn.functional.linear(*map(single, (teacher_input, teacher_weight, teacher_bias)))
    return distillation_loss(student, teacher, target, parts=True, **options)
