"""A user's own variant: how it is found, what is learned beside it, and how it runs on a pack of seeds.

A variant that broadcasts runs on the pack as it is. One that does not runs under `torch.func.vmap`, and where that is
not possible either on one seed after another; the student trains packed in all three. Which of them holds is found by
comparing values on a batch, not by reading code.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from trainables.by_path import Unloadable, described, load, namespace
from trainables.names import is_own
from trainables.streams import Streams
from trainables.variants import READS_FEATURES, VARIANTS, HyperParameters, Outputs, Term, Terms, Variant

How = Literal["packed", "vmap", "one by one"]
Shapes = Mapping[str, tuple[int, ...]]  # of one sample: `logits`, `features.layer3`, `attention.layer3`, `members`
_PARTS = ("features", "aligned", "attention", "masks")


def variant_of(variant: str) -> Variant:
    """The function by its name, or from the user's file. Raises by_path.Unloadable."""
    if not is_own(variant):
        return VARIANTS[variant]
    own: Variant = load(variant)
    return own


def reads_features(variant: str) -> bool:
    """Whether it may read the teacher's features of the layers that are compared, as a user's variant may."""
    return variant in READS_FEATURES or is_own(variant)


class Part:
    """A module that is learned beside the student, as a variant calls it: `student.extras["gate"](x)`.

    parameters: by name, each (S, ...) where `packed`; then x is (S, batch, ...), and every seed has its own weights.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor], packed: bool) -> None:
        self._module, self.parameters, self._packed = module, dict(parameters), packed

    def __call__(self, *inputs: Tensor) -> Any:
        def run(weights: dict[str, Tensor], *given: Tensor) -> Any:
            return functional_call(self._module, weights, given)

        return (vmap(run) if self._packed else run)(self.parameters, *inputs)

    def of_one(self, parameters: Mapping[str, Tensor]) -> "Part":
        return Part(self._module, parameters, packed=False)


def extras_of(
    variant: str, student: Shapes, teacher: Shapes | None, hp: HyperParameters, streams: Streams, replicate: int
) -> dict[str, nn.Module]:
    """What `<function>_extras(student_shapes, teacher_shapes, hp)` beside a user's variant makes, if there is one.

    Its parameters are drawn from a stream of the replicate's own, whatever torch's global generator stands at.
    """
    path, _, name = variant.rpartition(":")
    make = namespace(path).get(f"{name}_extras") if is_own(variant) else None
    if make is None:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(streams.generator("extras", replicate).get_state())
        made = make(dict(student), None if teacher is None else dict(teacher), hp)
    if not isinstance(made, dict) or not all(isinstance(m, nn.Module) for m in made.values()):
        raise Unloadable(f"{path}: {name}_extras must return a dict of torch modules by name, got {made!r:.80}")
    return made


def packed_parts(
    of_seeds: Sequence[Mapping[str, nn.Module]], device: str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Part]:
    """Learned parts of every seed in one program. Raises Unloadable for buffers, which seeds would have to share."""
    parts = {}
    for name in of_seeds[0] if of_seeds else ():
        modules = [modules[name].to(device, dtype) for modules in of_seeds]
        parameters, buffers = stack_module_state(modules)
        if buffers:
            raise Unloadable(
                f"the extra {name!r} has buffers ({', '.join(buffers)}), as a batch norm has, and seeds that train "
                "packed can have none: use a layer norm"
            )
        parts[name] = Part(modules[0], parameters, packed=True)
    return parts


def run_packed(variant: Variant, how: How) -> Variant:
    """The variant as a function of a pack: tensors (S, batch, ...) in, each term (S, batch) out."""
    return {"packed": variant, "vmap": _under_vmap(variant), "one by one": _one_by_one(variant)}[how]


def how_it_packs(
    variant: Variant, student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters
) -> tuple[How, str]:
    """How the variant can run on this pack, and why not faster: its values must be those of one seed at a time."""
    given = (student, teacher, labels, hp)
    expected = _one_by_one(variant)(*given)
    reasons: list[str] = []
    how: How
    for how, what in (("packed", "it does not broadcast"), ("vmap", "vmap cannot run it")):
        try:
            with _quiet():
                found = run_packed(variant, how)(*given)
            reason = _difference(found, expected)
        except Exception as error:
            reason = described(error)
        if reason is None:
            return how, "; ".join(reasons)
        reasons.append(f"{what} ({reason})")
    return "one by one", "; ".join(reasons)


def packed_variant(
    variant: str, student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters
) -> Variant:
    """The variant of this name, ready for a pack such as this one; a built-in one broadcasts and is left as it is."""
    function = variant_of(variant)
    if not is_own(variant):
        return function
    return run_packed(function, how_it_packs(function, student, teacher, labels, hp)[0])


def _difference(found: Terms, expected: Terms) -> str | None:
    if found.keys() != expected.keys():
        return f"it returns the terms {', '.join(found)}"
    for name, term in expected.items():
        value = found[name].value
        if value.shape != term.value.shape:
            return f"{name} is {tuple(value.shape)} and not {tuple(term.value.shape)}"
        if not torch.allclose(value, term.value, rtol=1e-3, atol=1e-5, equal_nan=True):
            return f"{name} has other values than seed by seed"
    return None


def _one_by_one(variant: Variant) -> Variant:
    def run(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
        seeds = []
        for s in range(len(labels)):
            own = None if teacher is None else of_seed(teacher, s)
            seeds.append(variant(of_seed(student, s), own, labels[s], hp))
        return {
            name: replace(term, value=torch.stack([terms[name].value for terms in seeds]))
            for name, term in seeds[0].items()
        }

    return run


def _under_vmap(variant: Variant) -> Variant:
    def run(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
        kept: dict[str, Term] = {}

        def one(of_student: dict[str, Tensor], of_teacher: dict[str, Tensor], own: Tensor) -> dict[str, Tensor]:
            shown = None if teacher is None else _filled(teacher, of_teacher)
            kept.update(variant(_filled(student, of_student), shown, own, hp))
            return {name: term.value for name, term in kept.items()}

        values = vmap(one)(_tensors(student), {} if teacher is None else _tensors(teacher), labels)
        return {name: replace(kept[name], value=value) for name, value in values.items()}

    return run


def of_seed(outputs: Outputs, seed: int) -> Outputs:
    """One seed's part of a pack's outputs, without the leading dimension."""
    return _filled(outputs, {name: tensor[seed] for name, tensor in _tensors(outputs).items()})


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    """Every tensor by a flat name, the parameters of learned parts among them."""
    found = {name: getattr(outputs, name) for name in ("logits", "gate", "members")}
    found |= {f"{part}.{layer}": t for part in _PARTS for layer, t in getattr(outputs, part).items()}
    found |= {f"extras.{n}.{k}": p for n, part in outputs.extras.items() for k, p in part.parameters.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _filled(like: Outputs, tensors: Mapping[str, Tensor]) -> Outputs:
    """Outputs as these, with other tensors, which are of one seed."""
    return Outputs(
        tensors["logits"],
        **{part: type(v := getattr(like, part))({k: tensors.get(f"{part}.{k}") for k in v}) for part in _PARTS},
        gate=tensors.get("gate"),
        members=tensors.get("members"),
        extras={n: p.of_one({k: tensors[f"extras.{n}.{k}"] for k in p.parameters}) for n, p in like.extras.items()},
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """vmap warns of what it can only do slowly; whether it can at all is the question here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
