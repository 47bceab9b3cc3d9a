"""Gradient audit: does every term of a loss with a weight reach the student, and which way does it pull?

A released loss can print a number for thirty epochs and send no gradient at all. For each named term, on one fixed
batch: the norm of its gradient on the student's parameters, its share of the weighted norms, its cosine with the
gradient of the unweighted cross-entropy.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.variants import Terms

DEAD = 1e-12  # of the largest norm: below it a gradient counts as zero
STARVED = 1e-4  # a share that stays below it is warned of: the term is alive and decides nothing
BATCH = 64
FURTHER_BATCHES = 3  # a term is called dead only if it is dead on these too


class DeadTerm(RuntimeError):
    """A term with a weight sends the student no gradient, and the arm does not declare it."""


@dataclass(frozen=True)
class TermAudit:
    """weight; norm of the unweighted term's gradient; share of Σ‖w g‖ in [0, 1]; cosine with CE's gradient, or nan.

    Of a term that trains the extras: norm of its gradient on them; share and cosine nan, and it is no part of Σ‖w g‖.
    """

    weight: float
    norm: float
    share: float
    cosine: float


def audit(
    terms: Terms, cross_entropy: Tensor, parameters: Sequence[Tensor], extras: Sequence[Tensor] = ()
) -> dict[str, TermAudit]:
    """The audit of one batch.

    terms: values (S, batch); cross_entropy: (S, batch), of the same forward pass; parameters: each (S, ...), shared by
    no two seeds, or of any shape where S is 1; extras: the same, of what is learned beside the student. Norms, shares
    and cosines are taken seed by seed, then averaged over the pack.
    """
    beside = {
        name: TermAudit(term.weight, float(_gradient(term.value, extras).norm(dim=1).mean()), math.nan, math.nan)
        for name, term in terms.items()
        if term.trains_extras
    }
    own = {name: term for name, term in terms.items() if name not in beside}
    return {**_of_student(own, cross_entropy, parameters), **beside}


def _of_student(terms: Terms, cross_entropy: Tensor, parameters: Sequence[Tensor]) -> dict[str, TermAudit]:
    gradients = {name: _gradient(term.value, parameters) for name, term in terms.items()}
    towards_labels = gradients["ce"] if "ce" in terms else _gradient(cross_entropy, parameters)
    norms = {name: g.norm(dim=1) for name, g in gradients.items()}
    weighted = {name: abs(term.weight) * norms[name] for name, term in terms.items()}
    total = torch.stack(list(weighted.values())).sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        name: TermAudit(
            weight=term.weight,
            norm=float(norms[name].mean()),
            share=float((weighted[name] / total).mean()),
            cosine=_cosine(gradients[name], towards_labels),
        )
        for name, term in terms.items()
    }


def audit_batches(
    of_batch: Callable[[int], dict[str, TermAudit]], rows: int, declared: Collection[str]
) -> dict[str, TermAudit]:
    """The audit of the first batch; where a weighted term looks dead, up to three more decide whether it is.

    of_batch: the audit of batch number 0, 1, ... of `BATCH` rows each; rows: how many there are in all.
    Raises DeadTerm, naming the terms that have a weight, are dead on every batch, and are not declared to be.
    """
    first = of_batch(0)
    if set(dead_terms([first])) - set(declared):
        further = [n for n in range(1, FURTHER_BATCHES + 1) if n * BATCH + 1 < rows]  # one row is no batch
        dead = set(dead_terms([first, *map(of_batch, further)])) - set(declared)
        if dead:
            raise DeadTerm(
                f"the loss term {', '.join(sorted(dead))} has a weight but sends the student no gradient: mend the "
                "variant, set the weight to 0, or declare it under the arm's dead_terms"
            )
    return first


def dead_terms(audits: Iterable[dict[str, TermAudit]]) -> list[str]:
    """Names of the terms that have a weight and are dead in every one of these audits."""
    dead: set[str] | None = None
    for one in audits:
        largest = max(a.norm for a in one.values())
        here = {name for name, a in one.items() if a.weight != 0 and a.norm <= DEAD * largest}
        dead = here if dead is None else dead & here
        if not dead:
            return []
    return sorted(dead or ())


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """(S, P) float64: each seed's gradient of its own mean over the batch; zeros where none arrives."""
    seeds = value.shape[0]
    if not value.requires_grad:
        return torch.zeros(seeds, sum(p.numel() for p in parameters) // seeds, dtype=torch.float64)
    arrived = torch.autograd.grad(value.mean(dim=-1).sum(), list(parameters), retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, arrived, strict=True)]
    return torch.cat([g.detach().reshape(seeds, -1).double().cpu() for g in parts], dim=1)


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = a.norm(dim=1) * b.norm(dim=1)
    if not bool((lengths > 0).all()):
        return math.nan
    return float(((a * b).sum(dim=1) / lengths).mean())
