"""The table family's trainable: a pack of small students of a binary label, with what teachers say of every row.

A student has one output, the logit of class 1; of a module of the user's it is the difference of its two logits. Its
teachers are models of any kind; what they say of the rows has been computed before, so nothing here runs them. Seeds
stop one by one when validation AUC has not risen for `patience` epochs; a stopped seed keeps its best state and is
charged no further epochs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.audit import BATCH, DeadTerm, TermAudit, audit, audit_batches
from trainables.binary import auc, mean_of_teachers
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import refuse_overlap
from trainables.early_stopping import Curve
from trainables.encoding import Encoder
from trainables.losses import cross_entropy, is_finite
from trainables.models.gate import Gate
from trainables.models.mlp import StackedMLP, single_of
from trainables.models.stacked import StackedModule, in_module, module_of_seed, stacked_of
from trainables.names import is_own
from trainables.own_variants import Part, Shapes, extras_of, packed_parts, packed_variant
from trainables.packing import StackedAdam, dropout_masks, shuffled_within_class
from trainables.streams import Streams
from trainables.variants import BLENDS, GATES, REFERENCES, Outputs, Terms, blended
from trainables.views import as_tensor

CHUNK = 1 << 17  # rows x seeds of one forward pass: a full batch accumulates its gradient over so many
FULL = "full"
GATE_HIDDEN = 32  # of a gate with a network of its own, where the student does not say

Score = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def train(config: TrialConfig, context: Context) -> Iterator[EpochResult]:
    """Train the pack epoch by epoch; every result is complete, so that a caller may stop after any.

    Raises Leak if a teacher has seen validation rows, DeadTerm if a weighted term sends no gradient at the first step.
    """
    if config.teacher_rows != "none" and context.validation is not None:
        for teacher in context.teachers:
            refuse_overlap("a teacher", teacher.fitted_on, "validation", context.validation)
    if config.variant in REFERENCES:
        yield _reference(config, context)
        return
    pack = TablePack(config, context)
    if context.resume:
        pack.load_state(context.resume)
    audits = {0: pack.audit()} if context.resume_epoch == 0 else {}
    if config.epochs == 0:
        yield EpochResult(0, {}, pack.parameter_count, audits, False, pack.state, pack.logits, gates=pack.gates)
    for epoch in range(context.resume_epoch + 1, config.epochs + 1):
        training = len(pack.training)
        losses = pack.train_epoch(epoch)
        diverged = not all(bool(is_finite(v).all()) for v in losses.values()) or not pack.finite()
        collapsed = ""
        if epoch in config.audit_at and not diverged and training:
            try:
                audits[epoch] = pack.audit()
            except DeadTerm as error:  # alive at the first step: no fault of the variant, but of a student that is dead
                diverged, collapsed = True, f"the student has collapsed by epoch {epoch}: {error}"
        metrics = {f"loss_{name}": v.tolist() for name, v in losses.items()}
        if context.validation is not None and epoch >= config.evaluate_from and not diverged:
            metrics |= pack.validate(epoch)
        yield EpochResult(
            *(epoch, metrics, pack.parameter_count, audits, diverged, pack.state, pack.logits, collapsed, training),
            gates=pack.gates,
        )
        audits = {}
        if diverged:
            return


class TablePack:
    """S students of one configuration, their gates where they have some, and who of them still trains.

    The rows' features are shared by all seeds and never copied for one: a batch gathers its own rows, a full batch
    reads them in chunks as they lie.
    """

    def __init__(self, config: TrialConfig, context: Context) -> None:
        hp, replicates, streams = config.hp, config.replicates, context.streams
        self._config, self._context = config, context
        self._x, self._y = as_tensor(context.fit.x, context.device), as_tensor(context.fit.y, context.device)
        dtype = torch.get_default_dtype()
        self._x = self._x if self._x.dtype == dtype else self._x.to(dtype)
        self.model = _students(config, self._x.shape[1])
        self.model.initialise([streams.generator("init", r) for r in replicates])
        self.gate = _gate(config, self.model.widths, self._teachers, streams)
        for network in (self.model, self.gate):
            if network is not None:
                network.to(device=context.device, dtype=dtype)
        about = shapes(config, self._teachers)
        extras = [extras_of(config.variant, *about, hp, streams, r) for r in replicates]
        self._parts: dict[str, Part] = packed_parts(extras, context.device, dtype)
        self.parameter_count = sum(p[0].numel() for p in self.model.parameters())
        self.training = list(range(len(replicates)))
        self._members, self._whose = self._fit_members(dtype)
        self._adam = StackedAdam(self.parameters, hp["learning_rate"], hp["weight_decay"])
        self._patience = config.patience if context.validation is not None else None  # nothing says when to stop
        self._curve = Curve(len(replicates), self._patience)
        self._best = {name: tensor.detach().clone() for name, tensor in self._current()}
        self._variant = packed_variant(config.variant, *self._first_rows(slice(0, BATCH)), hp)

    @property
    def _teachers(self) -> int:
        return self._context.teachers[0].fit.shape[1] if self._config.teacher_rows != "none" else 0

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the students first, then of what is learned beside them; each (seeds in training, ...)."""
        return [p for _, p in self._named()]

    def _named(self) -> list[tuple[str, Tensor]]:
        gate: list[tuple[str, Tensor]] = (
            [] if self.gate is None else [(f"gate.{k}", p) for k, p in self.gate.named_parameters()]
        )
        parts = [(f"extras.{n}.{k}", p) for n, part in self._parts.items() for k, p in part.parameters.items()]
        return [*((f"model.{k}", p) for k, p in self.model.named_parameters()), *gate, *parts]

    def _current(self) -> list[tuple[str, Tensor]]:
        """Parameters, and the buffers of a module of the user's; each (seeds in training, ...)."""
        kept = self.model.kept.named_buffers() if isinstance(self.model, StackedModule) else ()
        return [*self._named(), *((f"model.kept.{k}", buffer) for k, buffer in kept)]

    @property
    def _deployed(self) -> dict[str, Tensor]:
        return self._best if self._patience is not None else dict(self._current())

    @property
    def _least(self) -> int:
        """Rows of a batch that is trained on."""
        return 2 if isinstance(self.model, StackedModule) and self._config.hp["batch_size"] != 1 else 1

    # Training.

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """One pass over the rows for the seeds that still train; returns each term's mean over the pass.

        A batch of a single row is left out for a module of the user's: a batch norm cannot train on it.
        """
        if not self.training:
            return {}
        self.model.train()
        if isinstance(self.model, StackedModule):
            streams, own = self._context.streams, [self._config.replicates[s] for s in self.training]
            self.model.begin([streams.number("dropout", r, epoch) for r in own])
        rows, size = len(self._y), self._config.hp["batch_size"]
        draws = [
            [self._generator(f"dropout {layer}", s, epoch) for s in self.training]
            for layer, p in enumerate(self.model.dropout)
            if p > 0
        ]
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        if size == FULL or int(size) >= rows:
            self._adam.step(self._full_batch(draws, sums))
        else:
            order = torch.stack(
                [torch.randperm(rows, generator=self._stream("order", s, epoch)) for s in self.training]
            )
            for batch in order.to(self._x.device).split(int(size), dim=1):
                if batch.shape[1] < self._least:
                    continue
                terms = self._terms(self._x[batch], self._y[batch], batch, draws)
                self._adam.step(self._gradient(terms, batch.shape[1], sums))
        return {name: total / rows for name, total in sums.items()}

    def _full_batch(self, draws: list[list[np.random.Generator]], sums: dict[str, Tensor]) -> list[Tensor]:
        """The gradient of the mean over all rows, accumulated over chunks of them as they lie.

        A batch norm takes the statistics of its chunk.
        """
        rows, gradients = len(self._y), [torch.zeros_like(p) for p in self.parameters]
        for chunk in torch.arange(rows, device=self._x.device).split(max(2, CHUNK // len(self.training) // 2 * 2)):
            if len(chunk) < self._least:
                continue
            part = slice(int(chunk[0]), int(chunk[-1]) + 1)
            labels = self._y[part].expand(len(self.training), -1)
            terms = self._terms(self._x[part].unsqueeze(0), labels, part, draws)
            for total, g in zip(gradients, self._gradient(terms, rows, sums), strict=True):
                total += g
        return gradients

    def _terms(self, x: Tensor, labels: Tensor, rows: Tensor | slice, draws: Any) -> Terms:
        student = self._forward(x, dropout_masks(self.model, draws, labels.shape[1], x.dtype, x.device))
        return self._variant(student, self._shown(rows), labels, self._config.hp)

    def _gradient(self, terms: Terms, rows: int, sums: dict[str, Tensor]) -> Sequence[Tensor]:
        """Of the terms' sum over the batch / rows, added over seeds: no parameter is shared, so each has its own."""
        total = sum(term.weight * term.value for term in terms.values())
        assert isinstance(total, Tensor)
        for name, term in terms.items():
            sums[name] = sums[name] + term.value.detach().sum(dim=-1)
        return torch.autograd.grad(total.sum() / rows, self.parameters, allow_unused=True, materialize_grads=True)

    def _forward(self, x: Tensor, keep: Sequence[Tensor | None] = ()) -> Outputs:
        """x: (S or 1, batch, features)."""
        scores, hidden = _scored(self.model, x, keep)
        gate = None if self.gate is None else self.gate(x, hidden)
        return Outputs(two_class(scores), {} if hidden is None else {"hidden": hidden}, gate=gate, extras=self._parts)

    def _shown(self, rows: Tensor | slice) -> Outputs | None:
        """What the teachers say of these rows: a slice of them for all seeds, or (S, batch) for each its own."""
        if self._members is None:
            return None
        if isinstance(rows, slice):
            members = self._members[:, rows][self._whose]
        else:
            members = self._members[self._whose[:, None], rows]
        if not is_own(self._config.variant):
            return Outputs(members[..., :0], members=members)
        mean = torch.logit(torch.sigmoid(members).mean(dim=-1), eps=1e-7)
        return Outputs(two_class(mean), members=members)

    def _first_rows(self, rows: slice) -> tuple[Outputs, Outputs | None, Tensor]:
        """What the loss is given of these rows in the order that they lie in, without dropout."""
        self.model.eval()
        student = self._forward(self._x[rows].unsqueeze(0))
        return student, self._shown(rows), self._y[rows].expand(student.logits.shape[:-1])

    def _fit_members(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Logits (tables, N, teachers) in the row order that the arm asks for, and which table each seed reads (S,).

        A table belongs to a teacher set; only where rows are shuffled has each seed one of its own.
        """
        config, teachers = self._config, self._context.teachers
        if config.teacher_rows == "none":
            return None, torch.zeros(len(config.replicates), dtype=torch.int64)
        said = [as_tensor(t.in_sample if config.in_sample else t.fit).to(dtype) for t in teachers]
        whose = [r % len(teachers) for r in config.replicates]
        if config.teacher_rows == "shuffled_within_class":
            generators = [self._context.streams.generator("teacher rows", r) for r in config.replicates]
            labels = self._context.fit.y
            said = [said[k][shuffled_within_class(labels, g)] for k, g in zip(whose, generators, strict=True)]
            whose = list(range(len(said)))
        device = self._context.device
        return torch.stack(said).to(device), torch.tensor(whose, device=device)

    def audit(self) -> dict[str, TermAudit]:
        """Audit the first rows; where a weighted term looks dead, three more batches decide whether it is."""

        def of_batch(number: int) -> dict[str, TermAudit]:
            student, shown, labels = self._first_rows(slice(number * BATCH, (number + 1) * BATCH))
            terms = self._variant(student, shown, labels, self._config.hp)
            own = list(self.model.parameters())
            return audit(terms, cross_entropy(student.logits, labels), own, self.parameters[len(own) :])

        return audit_batches(of_batch, len(self._y), self._config.dead_terms)

    def finite(self) -> bool:
        return not self.training or all(bool(is_finite(p.detach()).all()) for p in self.parameters)

    # Validation and patience.

    def validate(self, epoch: int) -> dict[str, list[float]]:
        """`val_auc`, `val_nll` of every seed and the epoch they belong to; lets seeds stop that have not improved."""
        rows = self._context.validation
        assert rows is not None
        if self.training:
            scores = self._scores(rows.x, rows.teachers, dict(self._current()), self.training)
            labels = as_tensor(rows.y, self._context.device).expand(scores.shape)
            nll = cross_entropy(two_class(scores), labels).mean(dim=1).cpu().numpy().astype(np.float64)
            improved, stopped = self._curve.enter(epoch, self.training, auc(scores.double().cpu().numpy(), rows.y), nll)
            for name, tensor in self._current():
                self._best[name][[self.training[i] for i in improved]] = tensor.detach()[improved]
            if stopped:
                self._drop(stopped)
        if self._patience is None:
            return {"val_auc": self._curve.last_auc.tolist(), "val_nll": self._curve.last_nll.tolist()}
        best = [float(self._curve.epoch)] * len(self._curve.last_auc)
        found = {"val_auc": self._curve.auc.tolist(), "val_nll": self._curve.nll.tolist(), "best_epoch": best}
        return found

    def _drop(self, places: Sequence[int]) -> None:
        """Let the seeds at these places of the pack stop: nothing more is computed for them."""
        left = [i for i in range(len(self.training)) if i not in places]
        self._adam.keep(left)
        for p in self.parameters:
            p.data = p.data[left]
        if isinstance(self.model, StackedModule):
            self.model.keep(left)
        self._whose = self._whose[left]
        self.training = [self.training[i] for i in left]

    # Predicting.

    def logits(self, x: NDArray[Any], teachers: NDArray[np.float32] | None = None) -> Tensor:
        """x: (n, features) encoded; teachers: (sets, n, teachers) for students that need them -> (S, n, 2)."""
        return two_class(self._scores(x, teachers, self._deployed, range(len(self._config.replicates))))

    @torch.no_grad()
    def gates(self, x: NDArray[Any]) -> Tensor | None:
        """(S, n, teachers) of rows, or None where the arm has no gate."""
        if self.gate is None:
            return None
        score, gate = self._loaded(self._deployed)
        assert gate is not None
        return torch.cat([gate(part, score(part)[1]) for part in self._chunks(x)], dim=1)

    @torch.no_grad()
    def _scores(
        self, x: NDArray[Any], teachers: NDArray[np.float32] | None, weights: Mapping[str, Tensor], seeds: Sequence[int]
    ) -> Tensor:
        """(seeds, n): the logit of class 1, of the student or of its blend with its teachers."""
        score, gate = self._loaded(weights)
        hp, blend = self._config.hp, self._config.variant in BLENDS
        sets = [self._config.replicates[s] % len(self._context.teachers) for s in seeds]
        found, start = [], 0
        for part in self._chunks(x):
            scores, hidden = score(part)
            if blend:
                assert teachers is not None
                said = self._as_fitted(as_tensor(teachers[:, start : start + part.shape[1]])[sets], sets)
                said = said.to(scores.device, scores.dtype)
                student = Outputs(two_class(scores), gate=None if gate is None else gate(part, hidden))
                scores = torch.logit(blended(student, Outputs(said[..., :0], members=said), hp)[0], eps=1e-7)
            found.append(scores)
            start += part.shape[1]
        return torch.cat(found, dim=1)

    def _as_fitted(self, said: Tensor, sets: Sequence[int]) -> Tensor:
        """Logits (S, n, teachers) on the scale that the arm was fitted on: uncalibrated where it learned in sample."""
        if not self._config.in_sample:
            return said
        platt = torch.stack([as_tensor(self._context.teachers[k].platt) for k in sets]).unsqueeze(1)
        return (said - platt[..., 1]) / platt[..., 0]

    def _chunks(self, x: NDArray[Any]) -> list[Tensor]:
        dtype = next(self.model.parameters()).dtype
        parts = as_tensor(x).split(max(1, CHUNK // len(self._config.replicates)))
        return [part.to(self._context.device, dtype).unsqueeze(0) for part in parts]

    def _loaded(self, weights: Mapping[str, Tensor]) -> tuple[Score, Gate | None]:
        """Networks with these weights, (seeds, ...), which may be more seeds than still train."""
        score: Score
        if isinstance(self.model, StackedModule):
            self.model.eval()
            score = partial(_scored, self.model, state=in_module(weights))
        else:
            model = StackedMLP(self.model.widths, len(weights["model.weights.0"]), self.model.dropout)
            for name, p in model.named_parameters():
                p.data = weights[f"model.{name}"].detach()
            score = partial(_scored, model)
        if self.gate is None:
            return score, None
        gate = self.gate.like()
        for name, p in gate.named_parameters():
            p.data = weights[f"gate.{name}"].detach()
        return score, gate

    # State.

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, and the encoder: `model.*` and `gate.*` are what is deployed."""
        current = {f"optimiser.current.{k}": tensor.detach().clone() for k, tensor in self._current()}
        moments = {f"optimiser.{k}": v.clone() for k, v in self._adam.state().items()}
        training = {"optimiser.training": torch.tensor(self.training, dtype=torch.int64)}
        curve = {f"optimiser.curve.{k}": torch.from_numpy(v) for k, v in self._curve.state().items()}
        encoder = {f"encoder.{k}": v for k, v in self._context.encoder.items()}
        deployed = {k: v.detach().clone() for k, v in self._deployed.items()}
        return deployed | current | moments | training | curve | encoder

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where another pack of the same configuration stood."""
        self._best = {name: state[name].clone() for name in self._best}
        training = state["optimiser.training"].tolist()
        stopped = [i for i in self.training if i not in training]
        if stopped:
            self._drop(stopped)
        with torch.no_grad():
            for name, tensor in self._current():
                tensor.copy_(state[f"optimiser.current.{name}"])
            for name, moment in self._adam.state().items():
                moment.copy_(state[f"optimiser.{name}"])
        self._curve.load_state({k.removeprefix("optimiser.curve."): v.numpy() for k, v in state.items()})

    def _stream(self, name: str, seed: int, epoch: int) -> torch.Generator:
        return self._context.streams.generator(name, self._config.replicates[seed], epoch)

    def _generator(self, name: str, seed: int, epoch: int) -> np.random.Generator:
        return self._context.streams.numpy_generator(name, self._config.replicates[seed], epoch)


def shapes(config: TrialConfig, teachers: int) -> tuple[Shapes, Shapes | None]:
    """What a user's variant is given of one row, of student and teachers; the teachers' logits are of their mean."""
    student: Shapes = {"logits": (2,)}
    if config.student["kind"] != "factory":
        student = {**student, "features.hidden": (int(str(config.hp["hidden"]).split("-")[-1]),)}
    return student, None if config.teacher_rows == "none" else {"logits": (2,), "members": (teachers,)}


def _students(config: TrialConfig, features: int) -> StackedMLP | StackedModule:
    if config.student["kind"] == "factory":
        return stacked_of(config.student, features, 2, len(config.replicates))
    widths = [features, *map(int, str(config.hp["hidden"]).split("-")), 1]
    return StackedMLP(widths, len(config.replicates), [config.hp["dropout"]] * (len(widths) - 2))


def _scored(
    model: StackedMLP | StackedModule,
    x: Tensor,
    keep: Sequence[Tensor | None] = (),
    state: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x: (S or 1, batch, features) -> the logit of class 1 (S, batch) and, of a perceptron, its last hidden layer."""
    if isinstance(model, StackedModule):
        logits = model(x, state)
        return logits[..., 1] - logits[..., 0], None
    hidden = model.hidden(x, keep)
    return model.head(hidden).squeeze(-1), hidden


def _gate(config: TrialConfig, widths: Sequence[int], teachers: int, streams: Streams) -> Gate | None:
    kind = GATES.get(config.variant)
    if kind is None:
        return None
    layers = {
        "own": [widths[0], config.student.get("gate_hidden", GATE_HIDDEN), teachers],
        "shared": [widths[-2], teachers],
        "global": [1, teachers],
    }
    gate = Gate(kind, layers[kind], len(config.replicates))
    gate.network.initialise([streams.generator("gate", r) for r in config.replicates])
    if kind == "global":  # all but even, since where it is exactly so its entropy has no gradient
        for p in gate.parameters():
            p.data *= 0.1
    return gate


def two_class(scores: Tensor) -> Tensor:
    """The logit of class 1 (..., n) as logits of two classes (..., n, 2), which have the same probabilities."""
    return torch.stack([torch.zeros_like(scores), scores], dim=-1)


def _reference(config: TrialConfig, context: Context) -> EpochResult:
    """The teachers without a student: one of them, their mean, or a logistic regression on their logits."""
    combine = [_combined(config, context, r) for r in config.replicates]

    def predict(x: NDArray[Any], teachers: NDArray[np.float32] | None = None) -> Tensor:
        assert teachers is not None
        sets = [r % len(teachers) for r in config.replicates]
        scores = [one(teachers[k].astype(np.float64)) for one, k in zip(combine, sets, strict=True)]
        return two_class(torch.from_numpy(np.stack(scores)))

    metrics = {}
    rows = context.validation
    if rows is not None:
        logits = predict(rows.x, rows.teachers)
        labels = torch.from_numpy(np.array(rows.y)).expand(logits.shape[:-1])
        metrics["val_auc"] = auc(logits[..., 1].numpy(), rows.y).tolist()
        metrics["val_nll"] = cross_entropy(logits, labels).mean(dim=-1).tolist()
    return EpochResult(0, metrics, 0, {}, False, dict, predict, trained=0)


def _combined(config: TrialConfig, context: Context, replicate: int) -> Any:
    """A function from what the teachers say, (n, teachers) logits, to the logit of class 1 (n,)."""
    teacher = context.teachers[replicate % len(context.teachers)]
    if config.variant == "one_teacher":
        place = teacher.names.index(config.hp["teacher"])
        return lambda said: said[:, place]
    if config.variant == "uniform_mix":
        return mean_of_teachers
    from sklearn.linear_model import LogisticRegression

    stack = LogisticRegression(C=1e4, max_iter=1000).fit(teacher.fit, context.fit.y)
    return lambda said: stack.decision_function(said)


class Difference(nn.Module):
    """A module's logits of two classes (n, 2) as the logit of class 1 (n, 1)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits[:, 1:] - logits[:, :1]


def layers_of(
    state: Mapping[str, Tensor], seed: int, features: int, student: Mapping[str, Any] | None = None
) -> nn.Module:
    """One seed's network from a pack's state: encoded rows (n, features) -> logit of class 1 (n, 1)."""
    if student is None or student["kind"] != "factory":
        return single_of(state, seed)
    return Difference(module_of_seed(student, features, 2, state, seed))


class Student(nn.Module):
    """One trained student with its preprocessing: a table's columns (n, columns) float64 -> logit of class 1 (n,).

    It needs no teacher, and nothing but torch: what the columns are is in its state.
    """

    def __init__(self, state: Mapping[str, Tensor], seed: int, student: Mapping[str, Any] | None = None) -> None:
        """state: of an `EpochResult`; seed: its place in the pack; student: what it is, unless a perceptron."""
        super().__init__()
        self.encoder = Encoder.of({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
        self.layers = layers_of(state, seed, len(self.encoder.names), student)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.layers(self.encoder(x)).squeeze(-1)
        return logit

    @torch.no_grad()
    def predict_proba(self, frame: Any) -> NDArray[np.float64]:
        """A pandas DataFrame with the table's columns -> (n,) probabilities of the positive class."""
        from trainables.datasets.csv_table import encode_frame

        x = encode_frame(frame, self.encoder.columns)
        return torch.sigmoid(self(torch.from_numpy(x))).double().numpy()
