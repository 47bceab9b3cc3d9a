"""A dry batch: a user's variant called with made-up numbers of the right shapes, before anything is trained.

What it finds is told in one line, with the user's file and line: what was given and what is expected.
"""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainables.by_path import described, load, place
from trainables.names import nearest
from trainables.own_variants import How, Part, Shapes, extras_of, how_it_packs, of_seed, packed_parts
from trainables.streams import Streams
from trainables.variants import Outputs, Term, Terms, Variant

BATCH, SEEDS = 8, 3
EXPECTED = "a dict of Terms by name, such as {'ce': Term(value, weight)}"


class BadVariant(ValueError):
    """A user's variant that cannot be trained with; the message is one line."""


@dataclass(frozen=True)
class Examined:
    """What a dry batch says of a variant.

    how: it runs on a pack of seeds, and why not faster. terms: their names. reads: hyperparameters that it looked at.
    """

    how: How
    why: str
    terms: tuple[str, ...]
    reads: frozenset[str]


def examine(
    variant: str,
    shapes: Sequence[tuple[Mapping[str, Any], Shapes, Shapes | None]],
    declared_dead: Collection[str] = (),
    batches: Collection[int] = (),
    packs: bool = True,
) -> Examined:
    """Call a user's variant under each of these settings: (hyperparameters, shapes of student and teacher).

    The first are those of the arm's default. batches: sizes of a last batch that may come up, besides `BATCH`.
    packs: whether the family trains several seeds in one program. Raises BadVariant, and by_path.Unloadable for a file
    or a function that cannot be loaded.
    """
    function = load(variant)
    _refuse_signature(variant, function)
    reads: set[str] = set()
    examined: Examined | None = None
    for hp, student, teacher in shapes:
        for batch in (BATCH, *sorted(set(batches) - {BATCH})):
            asked = _Asked(hp)
            given = _made_up(variant, student, teacher, hp, batch, packs)
            terms = _examine_batch(variant, function, given if not packs else _first_seed(given), asked, declared_dead)
            reads |= asked.read
        if examined is None:
            how: How = "one by one"
            why = "the family trains one seed after another"
            if packs:
                how, why = how_it_packs(function, *_made_up(variant, student, teacher, hp, BATCH, packs), hp)
            examined = Examined(how, why, tuple(terms), frozenset())
    assert examined is not None
    return Examined(examined.how, examined.why, examined.terms, frozenset(reads))


Given = tuple[Outputs, Outputs | None, Tensor]


def _examine_batch(
    variant: str, function: Variant, given: Given, hp: "_Asked", declared_dead: Collection[str]
) -> Terms:
    """Call it twice on one seed's batch, and hold what it returns and what it leaves behind against the contract."""
    batch = len(given[2])
    before, settings = _copies(given), dict(hp)
    terms = _called(variant, function, given, hp)
    _refuse_terms(variant, terms, batch)
    if dict(hp) != settings:
        raise BadVariant(f"{variant} changes its hyperparameters: leave hp as it is")
    for name, tensor in _copies(given).items():
        if not torch.equal(tensor.nan_to_num(), before[name].nan_to_num()):
            raise BadVariant(f"{variant} changes {name} in place, which other arms read too: make a new tensor of it")
    again = _called(variant, function, given, hp)
    for name, term in terms.items():
        if name not in again or not torch.equal(again[name].value, term.value):
            raise BadVariant(
                f"{variant}: called again with the same batch its term {name!r} has other values; a variant keeps "
                "nothing between calls and draws no random numbers"
            )
    _refuse_dead(variant, terms, given[0], declared_dead)
    return terms


def _called(variant: str, function: Variant, given: Given, hp: "_Asked") -> Terms:
    path = variant.rpartition(":")[0]
    try:
        terms: Terms = function(*given, hp)
    except _Absent as error:
        raise BadVariant(f"{place(error, path)}: {error}") from None
    except Exception as error:
        name = variant.rpartition(":")[2]
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in _copies(given).items())
        raise BadVariant(f"{place(error, path)}: {name} raised {described(error)} (it was given {shapes})") from None
    return terms


def _refuse_signature(variant: str, function: Variant) -> None:
    try:
        inspect.signature(function).bind(None, None, None, None)
    except TypeError:
        raise BadVariant(
            f"{variant} takes {inspect.signature(function)}: a variant takes (student, teacher, labels, hp)"
        ) from None


def _refuse_terms(variant: str, terms: Any, batch: int) -> None:
    """Raise BadVariant unless these are Terms by name, with one finite value a sample."""
    if not isinstance(terms, dict) or not terms:
        raise BadVariant(f"{variant} must return {EXPECTED}; it returned {_said(terms)}")
    for name, term in terms.items():
        if not isinstance(name, str) or not name.isidentifier() or not isinstance(term, Term):
            raise BadVariant(f"{variant} must return {EXPECTED}; it returned {name!r}: {_said(term)}")
        if not isinstance(term.value, Tensor) or term.value.shape != (batch,):
            raise BadVariant(
                f"{variant}: the value of the term {name!r} must have one number a sample, a tensor of shape "
                f"({batch},) for this batch (the trainer averages); it is {_said(term.value)}"
            )
        if not isinstance(term.weight, int | float) or not math.isfinite(term.weight):
            raise BadVariant(f"{variant}: the weight of {name!r} must be a finite number, got {_said(term.weight)}")
        if not bool(torch.isfinite(term.value).all()):
            bad = term.value[~torch.isfinite(term.value)][0].item()
            raise BadVariant(f"{variant}: the term {name!r} is {bad} on a dry batch of {batch} made-up samples")


def _refuse_dead(variant: str, terms: Terms, student: Outputs, declared: Collection[str]) -> None:
    """Raise BadVariant where a weighted term has no gradient towards anything that the student says."""
    leaves = [t for t in _tensors(student).values() if t.requires_grad]
    learned = [
        p
        for part in student.extras.values()
        for p in (part.parameters.values() if isinstance(part, Part) else part.parameters())
    ]
    for name, term in terms.items():
        if term.weight == 0 or name in declared:
            continue
        towards = learned if term.trains_extras else leaves
        reached = term.value.requires_grad and any(
            g is not None for g in torch.autograd.grad(term.value.sum(), towards, retain_graph=True, allow_unused=True)
        )
        if not reached:
            whom = "the learned parts" if term.trains_extras else "the student"
            raise BadVariant(
                f"{variant}: the term {name!r} has a weight but sends {whom} no gradient: mend it, set its weight to "
                "0, or declare it under the arm's dead_terms"
            )


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


class _Absent(LookupError):
    """A name that is not there; its message names those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Asked(dict[str, Any]):
    """Hyperparameters that note which of them were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __missing__(self, name: str) -> Any:
        raise _Absent(
            f"hp has no {name!r}{nearest(name, self)}: it has {', '.join(sorted(self))}; give it in the arm's "
            "default, and in its space to search it"
        )


class _Named(dict[str, Any]):
    """Tensors by layer that say which there are."""

    what = ""

    def __missing__(self, name: str) -> Any:
        has = ", ".join(self) or "none: a layer is there if the arm's `layers` names it, of images"
        raise _Absent(f"no layer {name!r} in what it was given{nearest(name, self)}: there is {has}")


def _made_up(
    variant: str, student: Shapes, teacher: Shapes | None, hp: Mapping[str, Any], batch: int, packs: bool
) -> Given:
    """Outputs of `SEEDS` seeds (SEEDS, batch, ...) and labels, or of one (batch, ...), with every learned part."""
    generator = torch.Generator().manual_seed(0)
    said = _outputs(student, batch, generator, gradient=True)
    shown = None if teacher is None else _outputs(teacher, batch, generator)
    given = said, shown, torch.randint(student["logits"][0], (SEEDS, batch), generator=generator)
    modules = [extras_of(variant, student, teacher, hp, Streams("dry batch"), seed) for seed in range(SEEDS)]
    if packs:
        return replace(said, extras=packed_parts(modules)), *given[1:]
    said, shown, labels = _first_seed(given)
    return replace(said, extras=modules[0]), shown, labels


def _first_seed(given: Given) -> Given:
    student, teacher, labels = given
    return of_seed(student, 0), None if teacher is None else of_seed(teacher, 0), labels[0]


def _outputs(shapes: Shapes, batch: int, generator: torch.Generator, gradient: bool = False) -> Outputs:
    """Numbers as networks make them: logits of any sign, features that are not negative, maps of norm 1, masks."""
    found: dict[str, Any] = {part: _Named() for part in ("features", "aligned", "attention", "masks")}
    for name, shape in shapes.items():
        part, _, layer = name.partition(".")
        values = torch.randn(SEEDS, batch, *shape, generator=generator)
        if part in ("features", "attention"):
            values = values.abs()
        if part == "attention":
            values = values / values.flatten(2).norm(dim=-1)[..., None, None]
        if part == "masks":
            values = values.sigmoid()
        if gradient:
            values = values.requires_grad_() * 1.0  # as a network's: no leaf, so that what changes it in place is found
        if layer:
            found[part][layer] = values
        else:
            found[part] = values
    return Outputs(**found)


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    parts: Iterator[tuple[str, Any]] = iter(vars(outputs).items())
    found: dict[str, Tensor] = {}
    for name, value in parts:
        if isinstance(value, Tensor):
            found[name] = value
        elif name != "extras" and value:
            found |= {f"{name}[{layer!r}]": t for layer, t in value.items() if t is not None}
    return found


def _copies(given: Given) -> dict[str, Tensor]:
    """Every tensor that the variant was given, as it is now, by the name that the variant knows it by."""
    student, teacher, labels = given
    named = {f"student.{n}": t for n, t in _tensors(student).items()}
    named |= {} if teacher is None else {f"teacher.{n}": t for n, t in _tensors(teacher).items()}
    return {n: t.detach().clone() for n, t in {**named, "labels": labels}.items()}
