"""What a sweep asks: a study, its arms, their spaces, its budget and the published numbers it re-examines.

One definition serves inside and outside: these are frozen dataclasses that pydantic validates, so a study that came
from YAML is checked by the same rules as one that is built in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from spaces.families import (
    BLENDS,
    EXAMPLE_SIZE,
    EXAMPLES,
    FULL_BATCH,
    GIVEN,
    KINDS,
    LEAST_BATCH,
    LIMITS,
    LIMITS_OF_VARIANT,
    NAMES,
    NEEDS_TEACHER,
    OF_FAMILY,
    OF_VARIANT,
    ORDINARY,
    READS_HIDDEN,
    REFERENCES,
    SIZE_HYPERPARAMETERS,
    WEIGHS_TEACHERS,
    Compute,
    Data,
    Family,
    Role,
    Student,
    TableModels,
    Teacher,
    Variant,
    Views,
    of_student,
)
from spaces.outside import OutsideTeacher
from spaces.space import STRICT, Choice, Config, Dimension, Range, Scalar, Space, TeacherRows
from trainables.names import is_own, nearest

BASELINE = "hard_labels"
A_A_CONTROL = "hard_labels_again"
Positive = pydantic.PositiveInt
SizeMeasure = Literal["params", "latency"]


@dataclass(frozen=True, config=STRICT)
class Published:
    """A number that a source reports for one arm, and the settings it reports it for."""

    value: float
    config: Config
    statistic: Literal["last", "max_over_epochs_on_test", "val_selected"] = "last"


@dataclass(frozen=True, config=STRICT)
class Claim:
    """A published difference: `better` beats `worse` by `gain` of the study's metric.

    not_comparable: what differs from the source, where no verdict can be given. notes: what differs and is bearable.
    """

    better: str
    worse: str
    gain: float
    source: str
    not_comparable: str | None = None
    notes: str | None = None


@dataclass(frozen=True, config=STRICT)
class Effect:
    """What a factor does, as a combination of fixed arms that is taken seed by seed and row by row.

    arms: coefficient of each arm, summing to 0; a main effect over two levels of another factor has four of ±0.5.
    """

    name: str
    arms: dict[str, float]

    def __post_init__(self) -> None:
        if len(self.arms) < 2 or abs(sum(self.arms.values())) > 1e-9:
            raise ValueError(f"effect {self.name}: the coefficients of two or more arms must sum to 0, got {self.arms}")


@dataclass(frozen=True, config=STRICT)
class Arm:
    """One distillation variant.

    variant: a function of `trainables.variants`, or the user's, `path/to/file.py:function`.
    space: what is searched; without one the arm is fixed: its `default` goes straight to confirmation.
    default: the library's or the source's settings, the first trial of every search of this arm.
    teacher_rows: which row of the teacher each sample sees; `none` for variants without a teacher.
    dead_terms: terms that are known to send no gradient (as-released arms), so that the audit does not stop them.
    student: what this arm's student has different from the study's (as-released arms only: a fixed arm).
    size: the class of `Study.sizes` that its student is of; None for the study's own student.
    """

    variant: Variant
    default: Config
    space: Space = Field(default_factory=dict)
    teacher_rows: TeacherRows = "none"
    published: Published | None = None
    dead_terms: tuple[str, ...] = ()
    student: dict[str, Scalar] = Field(default_factory=dict)
    size: str | None = None
    about: str = ""

    def __post_init__(self) -> None:
        for name, dimension in self.space.items():
            if name not in self.default:
                raise ValueError(f"space: unknown hyperparameter {name}, the arm has {', '.join(self.default)}")
            if not dimension.contains(self.default[name]):
                raise ValueError(f"default {name}={self.default[name]} lies outside its space ({dimension})")
            if isinstance(dimension, Range) and name in NAMES:
                raise ValueError(f"space.{name} takes names: give them as {{choices: [{EXAMPLES.get(name, '...')}]}}")
            if isinstance(dimension, Range) and LIMITS.get(name, (0, 0, False))[2]:
                raise ValueError(f"space.{name} takes whole numbers: give them as {{choices: [32, 64, ...]}}")
            for value in dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high):
                _check_limits(self.variant, name, value)
        if not is_own(self.variant) and (self.teacher_rows != "none") != (self.variant in NEEDS_TEACHER):
            needs = (
                "needs a teacher: own or shuffled_within_class" if self.variant in NEEDS_TEACHER else "has no teacher"
            )
            raise ValueError(f"teacher_rows={self.teacher_rows}, but {self.variant} {needs}")
        if self.variant in REFERENCES and self.space:
            raise ValueError(f"space: {self.variant} trains no student, so there is nothing to search")
        for config in (self.default, *([self.published.config] if self.published else [])):
            for name, value in config.items():
                _check_limits(self.variant, name, value)
        if self.student and self.space:
            raise ValueError("student: a searched arm trains the study's student, or its comparison is not fair")

    @property
    def kind(self) -> Literal["searched", "fixed"]:
        return "searched" if self.space else "fixed"

    @property
    def role(self) -> Role:
        """What it takes to run it: a student alone, one with its teachers, or the teachers alone."""
        if self.variant in REFERENCES:
            return "reference"
        return "needs_teachers" if self.variant in BLENDS else "student"


def _check_limits(variant: str, name: str, value: object) -> None:
    if name in NAMES:
        if not isinstance(value, str) or (NAMES[name] and value not in NAMES[name]):
            allowed = f"one of {', '.join(NAMES[name])}" if NAMES[name] else f"a name such as {EXAMPLES[name]}"
            raise ValueError(f"{name} must be {allowed}, got {value!r}")
        if name == "hidden" and not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", value):
            raise ValueError(f"hidden must be the widths of the hidden layers, such as 64-32, got {value!r}")
        return
    if name == "batch_size" and value == FULL_BATCH:
        return
    if is_own(variant) and name not in LIMITS:
        return  # what it means is the variant's to say
    low, high, whole = LIMITS_OF_VARIANT.get((variant, name)) or LIMITS.get(name, (-math.inf, math.inf, False))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or (whole and value != int(value)):  # type: ignore[operator, call-overload]
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {low:g} to {high:g}, got {value!r}")


def sized(arm: str, size: str | None) -> str:
    """The name of the arm for students of this size."""
    return arm if size is None else f"{arm}-{size}"


def _metric_of(family: Family) -> str:
    return "auc" if family == "tabular" else "accuracy"


def _refuse_unknown_fields(
    where: str, given: Mapping[str, object], student: Student, beside: Sequence[str] = ()
) -> None:
    """Raise ValueError for a field that the study's student does not have, or a value that it cannot have."""
    allowed = [*(f.name for f in fields(student) if f.name != "kind"), *beside]
    for name in given:
        if name not in allowed:
            raise ValueError(f"{where}: unknown key {name}{nearest(name, allowed)}: allowed are {', '.join(allowed)}")
    type(student)(**{**asdict(student), **given})


@dataclass(frozen=True, config=STRICT)
class Budget:
    """How much every searched arm may spend, in seed-epochs, and how its result is confirmed.

    subsearches: independent searches an arm is split into, because tuning is random too.
    patience: epochs without a better validation metric after which a seed of a table's trial stops; it is charged no
    further epochs, and the confirmation trains to the epoch that the search found best.
    reevaluate_share: part of an arm's budget that re-evaluates the best trials on validation under fresh seeds.
    """

    seed_epochs_per_arm: Positive
    seeds_per_trial: Positive
    confirm_seeds: Positive
    max_epochs: Positive
    subsearches: Positive = 4
    reevaluate_share: float = Field(default=0.1, ge=0, le=0.5)
    reevaluate_top: Positive = 5
    reduction_factor: int = Field(default=3, ge=2)
    patience: Positive | None = None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared; the first is at least max_epochs / 9, the last is max_epochs."""
        rungs = [math.ceil(self.max_epochs / 9)]
        while rungs[-1] * self.reduction_factor < self.max_epochs:
            rungs.append(rungs[-1] * self.reduction_factor)
        return (*[r for r in rungs if r < self.max_epochs], self.max_epochs)

    @property
    def reevaluation(self) -> tuple[int, int]:
        """(trials, fresh seeds of each) that one sub-search re-evaluates to max_epochs; (0, 0) if too little is left.

        As many of the top five as can get at least `seeds_per_trial` / 2 seeds each, two at the least.
        """
        runs = int(self.reevaluate_share * self.seed_epochs_per_arm / self.subsearches / self.max_epochs)
        top = max(2, min(self.reevaluate_top, runs // max(2, math.ceil(self.seeds_per_trial / 2))))
        seeds = min(runs // top, 2 * self.seeds_per_trial)
        return (top, seeds) if seeds >= 2 else (0, 0)

    @property
    def search_seed_epochs(self) -> int:
        """What is left for the search of one arm once its re-evaluation is set aside."""
        top, seeds = self.reevaluation
        return self.seed_epochs_per_arm - self.subsearches * top * seeds * self.max_epochs

    @property
    def mean_trial_cost(self) -> float:
        """Expected seed-epochs of a trial when every rung lets 1 / reduction_factor of its trials pass."""
        previous = (0, *self.rungs[:-1])
        steps = [(r - p) / self.reduction_factor**i for i, (p, r) in enumerate(zip(previous, self.rungs, strict=True))]
        return float(self.seeds_per_trial * sum(steps))

    def __post_init__(self) -> None:
        first_rung = self.seeds_per_trial * self.rungs[0]
        least = first_rung * self.subsearches
        if self.search_seed_epochs < least:
            raise ValueError(
                f"seed_epochs_per_arm={self.seed_epochs_per_arm} is too small: it leaves {self.search_seed_epochs} for "
                f"the search, and one trial to the first rung in each of {self.subsearches} sub-searches costs {least}"
            )
        if self.confirm_seeds % self.subsearches:
            raise ValueError(
                f"confirm_seeds={self.confirm_seeds} must be a multiple of subsearches={self.subsearches}, "
                "whose winners share the seeds equally"
            )


@dataclass(frozen=True, config=STRICT)
class Study:
    """One question: data, teacher, arms, budget, and the published results it re-examines.

    trainable: the user's own, `path/to/file.py:function`, instead of the family's.
    contrasts: pairs (a, b) whose difference answers a question of its own.
    margin: the smallest difference of the metric that anybody would act on.
    accept_contaminated_validation: select on validation rows that a teacher from outside may have been fitted on; every
    result says so.
    objective: (the metric on validation, `params` or `latency`) where a study asks how small a student may be.
    sizes: what the student of each further size has different, `{small: {hidden: [16]}}`; every searched arm is then
    searched once more for each of them, as `kd-small`, with the same budget, and judged against `hard_labels-small`.
    within: how far below its teacher a student may be to take its place, in the metric.
    peeks: `test` measures as-published runs at every epoch where the source reports the best of epochs on the test set;
    no verdict rests on it, and the ledger records the look.
    """

    name: str
    about: str
    family: Family
    data: Data
    student: Student
    teacher: Teacher
    arms: dict[str, Arm]
    budget: Budget
    quick: Budget
    trainable: str | None = None
    metric: Literal["accuracy", "auc"] = "accuracy"
    margin: float = Field(default=0.002, gt=0)
    confirm_on: Literal["train", "train+validation"] = "train"
    confirm_teachers: Positive = 1
    accept_contaminated_validation: bool = False
    contrasts: tuple[tuple[str, str, str], ...] = ()
    claims: tuple[Claim, ...] = ()
    effects: tuple[Effect, ...] = ()
    objective: tuple[str, SizeMeasure] | None = None
    sizes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    within: float = Field(default=0.005, gt=0)
    views: Views = Field(default_factory=Views)
    compute: Compute = Field(default_factory=Compute)
    peeks: Literal["test", "none"] = "test"
    published_teacher: float | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, kinds in KINDS[self.family].items():
            given = getattr(self, part).kind
            if given not in kinds:
                raise ValueError(f"{part}.kind of the family {self.family} must be {' or '.join(kinds)}, got {given}")
        for needed in (BASELINE, A_A_CONTROL):
            if needed not in self.arms or self.arms[needed].kind != "searched":
                raise ValueError(f"every study searches the arm {needed}, and this one does not")
        if (self.metric == "auc") != (self.family == "tabular"):
            raise ValueError(f"metric of the family {self.family} must be {_metric_of(self.family)}, got {self.metric}")
        self._check_sizes()
        self._check_shared_spaces()
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        self._check_teacher_from_outside()
        for claim in self.claims:
            if {claim.better, claim.worse} - set(self.arms):
                raise ValueError(f"claim {claim.better} > {claim.worse} names an arm that the study does not have")
        if self.trainable is not None:
            path, _, function = self.trainable.rpartition(":")
            if not function.isidentifier() or not Path(path).is_file():
                raise ValueError(
                    f"trainable must be path/to/file.py:function with an existing file, got {self.trainable}"
                )
        for a, b, _ in self.contrasts:
            if {a, b} - set(self.arms):
                raise ValueError(f"contrast {a} - {b} names an arm that the study does not have")
        for effect in self.effects:
            for name in effect.arms:
                if name not in self.arms or self.arms[name].kind != "fixed":
                    raise ValueError(f"effect {effect.name} combines fixed arms, and {name} is none")

        for which, budget in {"budget": self.budget, "quick": self.quick}.items():
            if budget.patience is not None and self.family != "tabular":
                raise ValueError(f"{which}.patience={budget.patience}: only the family tabular stops early")
            if budget.confirm_seeds < self.least_confirm_seeds:
                raise ValueError(
                    f"{which}.confirm_seeds={budget.confirm_seeds} cannot decide between {len(self.arms)} arms: the "
                    f"smallest p of an exact test is 2^(1-n), so at least {self.least_confirm_seeds} seeds are needed"
                )

    def _check_sizes(self) -> None:
        """Each class of students is of its own, and none is judged without a baseline of its size."""
        if bool(self.sizes) != (self.objective is not None):
            given, lacking = ("objective", "sizes") if self.objective else ("sizes", "objective")
            example = f"objective: [{self.val_metric}, params] with sizes: {{small: {EXAMPLE_SIZE[self.family]}}}"
            raise ValueError(
                f"{given} is given without {lacking}: a choice of student size needs both, such as {example}"
            )
        if self.objective is None:
            return
        if self.objective[0] != self.val_metric:
            raise ValueError(f"objective must begin with {self.val_metric}, got {self.objective[0]}")
        if self.objective[1] == "latency" and self.family == "mlp":
            raise ValueError(
                "objective: latency is measured of images' and tables' students; for the family mlp use params"
            )
        seen: dict[str, str] = {}
        of_size = of_student(SIZE_HYPERPARAMETERS[self.family], self.student.kind)
        for name, different in {"": {}, **self.sizes}.items():
            if name and not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"sizes: a name must be letters, digits and _, got {name!r}")
            if name and not different:
                raise ValueError(f"sizes.{name} is empty: say what its student has different")
            fixed = {k: v for k, v in different.items() if k in of_size}
            own = {k: v for k, v in different.items() if k not in fixed}
            _refuse_unknown_fields(f"sizes.{name}", own, self.student, of_size)
            made = repr((type(self.student)(**{**asdict(self.student), **own}), fixed))
            if made in seen:
                raise ValueError(f"sizes.{name} is the same student as {seen[made] or 'that of the study'}")
            seen[made] = f"sizes.{name}" if name else ""
        for name, arm in self.arms.items():
            if arm.size is not None and (arm.size not in self.sizes or arm.kind != "searched"):
                raise ValueError(f"arms.{name}.size={arm.size}: a searched arm may be of {', '.join(self.sizes)}")
        for needed in self.baselines:
            if needed not in self.arms:
                raise ValueError(f"a student of every size needs a baseline of its size, and there is no arm {needed}")

    def _check_shared_spaces(self) -> None:
        shared: dict[str, tuple[str, Dimension]] = {}
        for name, arm in self.arms.items():
            for hp, dimension in arm.space.items():
                first, expected = shared.setdefault(hp, (name, dimension))
                if dimension != expected:
                    raise ValueError(
                        f"arms.{name}.space.{hp} is {dimension} but {first} searches {expected}: a shared "
                        f"hyperparameter has one range, or the comparison is not fair; set space.{hp} for all arms"
                    )

    def _check_teacher_from_outside(self) -> None:
        """Promise 1: nobody selects on rows that the teacher may have seen without knowing it and saying so."""
        fitted_on = self.teacher_fitted_on
        if fitted_on is None:
            if self.accept_contaminated_validation:
                raise ValueError(
                    "accept_contaminated_validation is for a teacher from outside, and this study's is trained here, "
                    "on rows that are not for validation: leave it out"
                )
            return
        if self.confirm_teachers > 1:
            raise ValueError(
                f"confirm_teachers={self.confirm_teachers}, but a teacher from outside is one and the same for every "
                "seed: leave it at 1"
            )
        if fitted_on != "train" and not self.has_unseen_validation and not self.accept_contaminated_validation:
            raise ValueError(
                f"teacher.fitted_on={fitted_on}: it may have been fitted on the validation rows, by which everything "
                "is selected: name rows that it never saw in data.validation_rows, or set "
                "accept_contaminated_validation: true, and every tuned value says so"
            )

    @property
    def teacher_fitted_on(self) -> str | None:
        """Of a teacher that was fitted elsewhere what it was fitted on, as it declares; None for one trained here."""
        return self.teacher.fitted_on if isinstance(self.teacher, OutsideTeacher) else None

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of a table's teachers; of other families none."""
        if isinstance(self.teacher, TableModels):
            return self.teacher.models
        return (GIVEN,) if self.family == "tabular" else ()

    @property
    def has_unseen_validation(self) -> bool:
        """Whether the study names the rows to validate on, which the teacher never saw."""
        return getattr(self.data, "validation_rows", None) is not None

    @property
    def contaminated(self) -> str | None:
        """Why no tuned value of this study was selected on rows that nobody has seen; None where they were."""
        fitted_on = self.teacher_fitted_on
        if fitted_on in (None, "train") or self.has_unseen_validation:
            return None
        return (
            f"contaminated validation: the teacher's fitted_on is {fitted_on}, so that it may have been fitted on the "
            "rows by which every tuned value was selected (accept_contaminated_validation)"
        )

    def _check_arm(self, name: str, arm: Arm) -> None:
        allowed = OF_FAMILY[self.family]
        if self.trainable is None and arm.variant not in allowed and not is_own(arm.variant):
            raise ValueError(
                f"arms.{name}.variant of the family {self.family} must be one of {', '.join(allowed)}, "
                f"got {arm.variant}"
            )
        if self.student.kind == "factory" and arm.variant in READS_HIDDEN:
            raise ValueError(
                f"arms.{name}: the gate of {arm.variant} reads the student's last hidden layer, which a module of your "
                f"own does not show: leave the arm out with arms: {{{name}: null}}"
            )
        ordinary = () if arm.variant in REFERENCES else of_student(ORDINARY[self.family], self.student.kind)
        wanted = {*ordinary, *(arm.default if is_own(arm.variant) else OF_VARIANT[arm.variant])}
        models = self.teachers
        if arm.variant in WEIGHS_TEACHERS and len(models) < 2:
            raise ValueError(f"arms.{name}: {arm.variant} weighs several teachers, and the study has {len(models)}")
        configs = {"default": arm.default, **({"published.config": arm.published.config} if arm.published else {})}
        sizes = list(getattr(arm.space.get("batch_size"), "choices", ()))
        for where, config in configs.items():
            if set(config) != wanted:
                given = ", ".join(sorted(config))
                raise ValueError(f"arms.{name}.{where} must give {', '.join(sorted(wanted))}, no more, got {given}")
            if "teacher" in config and config["teacher"] not in models:
                raise ValueError(
                    f"arms.{name}.{where}.teacher must be one of the study's teachers ({', '.join(models)}), got "
                    f"{config['teacher']}"
                )
            sizes += [config["batch_size"]] if "batch_size" in config else []
        if FULL_BATCH in sizes and self.family != "tabular":
            raise ValueError(f"arms.{name}: batch_size={FULL_BATCH} is for tables, {self.family} takes whole numbers")
        least = LEAST_BATCH[self.family]
        if any(int(size) < least for size in sizes if size != FULL_BATCH):
            raise ValueError(f"arms.{name}: batch_size of the family {self.family} must be {least} or more")
        if arm.student:
            _refuse_unknown_fields(f"arms.{name}.student", arm.student, self.student)

    @property
    def searched(self) -> list[str]:
        return [name for name, arm in self.arms.items() if arm.kind == "searched"]

    @property
    def candidates(self) -> list[str]:
        """The searched arms whose difference from the baseline is judged: the first family of tests."""
        return [name for name in self.searched if name not in (*self.baselines, A_A_CONTROL)]

    def baseline_of(self, arm: str) -> str:
        """The tuned arm without a teacher that this one is judged against: of students of the same size."""
        return sized(BASELINE, self.arms[arm].size)

    @property
    def baselines(self) -> list[str]:
        """The tuned baseline of the study's own student, then that of every other size."""
        return [sized(BASELINE, size) for size in (None, *self.sizes)]

    @property
    def fixed(self) -> list[str]:
        """The arms without a search; their differences from the baseline are a family of their own."""
        return [name for name, arm in self.arms.items() if arm.kind == "fixed"]

    @property
    def least_confirm_seeds(self) -> int:
        """The fewest seeds with which a sign-flip test could reach 0.05 after Holm's correction."""
        largest_family = max(1, *map(len, (self.candidates, self.fixed, self.claims, self.contrasts, self.effects)))
        return math.ceil(1 + math.log2(largest_family / 0.05))

    def learns_in_sample(self, arm: str) -> bool:
        """Whether the arm reads what teachers say of rows that they were fitted on: as it asks, or the study."""
        in_sample = isinstance(self.teacher, TableModels) and self.teacher.predictions == "in_sample"
        return in_sample or self.arms[arm].teacher_rows == "in_sample"

    def student_of(self, arm: str) -> dict[str, Any]:
        """What the arm's student is: the study's, with what its size or an as-released arm has different."""
        size = self.arms[arm].size
        own = {} if size is None else self.sizes[size]
        different = {k: v for k, v in own.items() if k not in SIZE_HYPERPARAMETERS[self.family]}
        return asdict(type(self.student)(**{**asdict(self.student), **different, **self.arms[arm].student}))

    @property
    def students(self) -> list[dict[str, Any]]:
        """What the study's own student is, then that of every other size."""
        return [self.student_of(arm) for arm in self.baselines]

    @property
    def val_metric(self) -> str:
        return f"val_{self.metric}"
