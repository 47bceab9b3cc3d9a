"""What a study of each family may say about its data, student and teacher, and which hyperparameters it has.

`trainables` reads these as plain mappings; a test holds the two sides together.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from spaces.outside import (
    FactoryStudent,
    FactoryTeacher,
    GraphTeacher,
    LogitsTeacher,
    TimmStudent,
    TimmTeacher,
    TorchvisionStudent,
    TorchvisionTeacher,
)
from spaces.space import STRICT, Choice, Range
from trainables.names import is_own, nearest

Positive = pydantic.PositiveInt
Share = Annotated[float, Field(gt=0, lt=1)]
Family = Literal["mlp", "vision", "tabular"]
Role = Literal["student", "needs_teachers", "reference"]

# The ordinary hyperparameters of a family, which every arm must give, and those that a variant adds.
ORDINARY: dict[str, tuple[str, ...]] = {
    "mlp": ("learning_rate", "weight_decay", "batch_size"),
    "vision": ("learning_rate", "weight_decay", "batch_size", "schedule"),
    "tabular": ("learning_rate", "weight_decay", "batch_size", "dropout", "hidden"),
}
# Hyperparameters that make a student larger: a class of `Study.sizes` fixes them. And how a class may read.
SIZE_HYPERPARAMETERS: dict[str, tuple[str, ...]] = {"mlp": (), "vision": (), "tabular": ("hidden",)}
EXAMPLE_SIZE = {"mlp": "{hidden: [16]}", "vision": "{width: 8}", "tabular": "{hidden: '16'}"}
OF_PERCEPTRON = ("dropout", "hidden")  # which a module of the user's says by its own options
_WEIGHTED_KD = ("temperature", "ce_weight", "kd_weight")
_MASK = ("layers", "mask", "mask_percentile", "mask_edge")
OF_VARIANT: dict[str, tuple[str, ...]] = {
    "hard_labels": (),
    "label_smoothing": ("smoothing",),
    "kd": ("temperature", "kd_weight"),
    "weighted_kd": _WEIGHTED_KD,
    "kd_fa": (*_WEIGHTED_KD, "fa_weight", *_MASK),
    "kd_at": (*_WEIGHTED_KD, "at_weight", "at_form", *_MASK),
    "kd_fa_at": (*_WEIGHTED_KD, "fa_weight", "at_weight", "at_form", *_MASK),
    "released_kd": ("layers",),
    "released_fa": ("layers",),
    "released_at": ("layers",),
    "released_fa_at": ("layers",),
    "half_ce": (),
    "kd_uniform": ("temperature", "kl_weight"),
    "attention_student": ("temperature", "kl_weight", "entropy_weight"),
    "attention_blend": ("temperature", "kl_weight", "entropy_weight", "blend_weight"),
    "uniform_blend": ("temperature", "kl_weight", "blend_weight"),
    "global_gate_blend": ("temperature", "kl_weight", "entropy_weight", "blend_weight"),
    "as_printed": ("temperature", "kl_weight", "blend_weight"),
    "one_teacher": ("teacher",),
    "uniform_mix": (),
    "logistic_stack": (),
}
REFERENCES = ("one_teacher", "uniform_mix", "logistic_stack")  # no student is trained, so the ordinary ones are absent
# Variants whose prediction needs the teachers, too: what they gain is not a student's alone.
BLENDS = ("attention_blend", "uniform_blend", "global_gate_blend", "as_printed")
# Variants that weigh one teacher against another, and with one teacher say nothing.
WEIGHS_TEACHERS = (
    *("attention_student", "attention_blend", "global_gate_blend", "as_printed"),
    *("uniform_mix", "logistic_stack"),
)
# Variants whose gate reads the student's last hidden layer, which a module of the user's does not show.
READS_HIDDEN = ("attention_blend", "as_printed")
WITHOUT_TEACHER = ("hard_labels", "label_smoothing", "half_ce")
NEEDS_TEACHER = tuple(v for v in OF_VARIANT if v not in WITHOUT_TEACHER)


def of_student(hyperparameters: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """Those of these hyperparameters that a student of this kind has."""
    return tuple(name for name in hyperparameters if kind != "factory" or name not in OF_PERCEPTRON)


def _known(variant: str) -> str:
    own = is_own(variant) and variant.rpartition(":")[2].isidentifier()
    if not own and variant not in OF_VARIANT:
        raise ValueError(
            f"got '{variant}'{nearest(variant, OF_VARIANT)}: allowed are {', '.join(map(repr, OF_VARIANT))}, or "
            "path/to/file.py:function"
        )
    return variant


Variant = Annotated[str, pydantic.AfterValidator(_known)]
ANYWHERE = ("hard_labels", "label_smoothing")
OF_FAMILY: dict[str, tuple[str, ...]] = {
    "mlp": (*ANYWHERE, "half_ce", "kd", "weighted_kd"),
    "vision": (
        *(*ANYWHERE, "half_ce", "kd", "weighted_kd", "kd_fa", "kd_at", "kd_fa_at"),
        *("released_kd", "released_fa", "released_at", "released_fa_at"),
    ),
    "tabular": (*ANYWHERE, "kd_uniform", "attention_student", *BLENDS, *REFERENCES),
}
# What a hyperparameter may be at all, whatever the space says: (lowest, highest, whole number).
LIMITS: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (1e-8, 10.0, False),
    "weight_decay": (0.0, 10.0, False),
    "batch_size": (1, 1_000_000, True),
    "smoothing": (0.0, 1.0, False),
    "temperature": (1e-2, 1e3, False),
    "ce_weight": (0.0, 1e6, False),
    "kd_weight": (0.0, 1e6, False),
    "fa_weight": (0.0, 1e6, False),
    "at_weight": (0.0, 1e6, False),
    "mask_percentile": (0.0, 99.0, False),
    "kl_weight": (0.0, 1e6, False),
    "entropy_weight": (0.0, 1e6, False),
    "blend_weight": (0.0, 1.0, False),
    "dropout": (0.0, 0.95, False),
}


def is_at_limit(name: str, dimension: Range | Choice, value: object) -> bool:
    """Whether a value lies at an end of its range beyond which there is nothing: a dropout of 0 cannot be lower."""
    if not isinstance(dimension, Range) or name not in LIMITS or not isinstance(value, int | float):
        return False
    low, high, _ = LIMITS[name]
    return dimension.low <= low if dimension.fraction(value) < 0.5 else dimension.high >= high


LEAST_BATCH = {"mlp": 1, "vision": 2, "tabular": 1}  # a batch norm cannot train on one image
FULL_BATCH = "full"  # all rows in one step, of a table
# `kd` weighs cross-entropy by what its own weight leaves of 1.
LIMITS_OF_VARIANT: dict[tuple[str, str], tuple[float, float, bool]] = {("kd", "kd_weight"): (0.0, 1.0, False)}
# Hyperparameters that are names. `layers` is checked against the networks before anything runs, `teacher` against the
# study's; `hidden` is a list of widths, such as 64-32.
NAMES: dict[str, tuple[str, ...]] = {
    "schedule": ("constant", "cosine"),
    "at_form": ("code", "sum", "paper"),
    "mask": ("none", "grad_cam", "layer_cam", "random_mask"),
    "mask_edge": ("soft", "hard"),
    "layers": (),
    "hidden": (),
    "teacher": (),
}
EXAMPLES = {"layers": "layer3 or layer2+layer3", "hidden": "64-32", "teacher": "xgboost"}


@dataclass(frozen=True, config=STRICT)
class MakeClassification:
    """scikit-learn's generated classification table; `split_seed` draws the test rows and the validation rows.

    validation_rows: see `ImageFolder`.
    """

    kind: Literal["make_classification"] = "make_classification"
    n_samples: int = Field(default=5000, ge=200)
    n_features: Positive = 20
    n_informative: int = Field(default=10, ge=2)
    n_redundant: int = Field(default=5, ge=0)
    random_state: int = Field(default=42, ge=0, lt=2**32)
    split_seed: int = Field(default=42, ge=0, lt=2**32)
    fresh_rows: int = Field(default=60_000, ge=0)
    validation_rows: str | None = None

    def __post_init__(self) -> None:
        if self.n_informative + self.n_redundant > self.n_features:
            raise ValueError(
                f"n_informative={self.n_informative} + n_redundant={self.n_redundant} is more than "
                f"n_features={self.n_features}"
            )


@dataclass(frozen=True, config=STRICT)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; `train_limit` keeps so many training images, stratified.

    validation_rows: see `ImageFolder`.
    """

    kind: Literal["digits"] = "digits"
    test_fraction: Share = 0.3
    validation_fraction: Share = 0.25
    train_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    validation_rows: str | None = None


@dataclass(frozen=True, config=STRICT)
class Cifar10:
    """CIFAR-10 with its official test split, downloaded by torchvision into `root` (default: the cache folder).

    validation_rows: see `ImageFolder`.
    """

    kind: Literal["cifar10"] = "cifar10"
    root: str | None = None
    validation_fraction: Share = 0.1
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    validation_rows: str | None = None


@dataclass(frozen=True, config=STRICT)
class ImageFolder:
    """Images as `train/<class>/...` and `test/<class>/...` under `path`.

    size: resize every image to size x size pixels; without it all must be of one size. skip_broken: leave out what
    cannot be decoded instead of refusing the folder. validation_rows: a file that names the rows to validate on, which
    are drawn without it, because a teacher from outside never saw them: a line (or a number of a `.npy`) each, as the
    `id` of `LogitsTeacher`.
    """

    path: str
    kind: Literal["image_folder"] = "image_folder"
    size: Annotated[int, Field(ge=4)] | None = None
    grayscale: bool = False
    skip_broken: bool = False
    validation_fraction: Share = 0.1
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    validation_rows: str | None = None


@dataclass(frozen=True, config=STRICT)
class Promotions:
    """A generated table of promotional campaigns: `rows` without promotion to train on, `test_rows` with one to test.

    specialisation: 0 where no teacher is better on some rows than on others, 1 where each is on its own.
    """

    kind: Literal["promotions"] = "promotions"
    rows: int = Field(default=5000, ge=200)
    test_rows: int = Field(default=40_000, ge=200)
    specialisation: float = Field(default=1.0, ge=0, le=1)
    random_state: int = Field(default=0, ge=0, lt=2**32)
    validation_fraction: Share = 0.2
    split_seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True, config=STRICT)
class CsvTable:
    """A table of your own, `.csv` or `.parquet`, with a target of two classes.

    positive: the target's value that is class 1. features: the columns to learn from, all without it; drop: those not
    to, such as ids. categorical: columns of numbers that are names. shift: a condition such as "SpecialDay > 0" or
    "Month == Nov"; rows where it holds are tested on and never trained on, without it `test_fraction` is drawn.
    duplicates: rows that are equal in every cell. segments: columns by whose values results are broken down.
    least_test_positives: a shift that leaves fewer of either class to test on is refused. validation_rows: see
    `ImageFolder`; a row's name is its number in the file, from 0 for the first below the header.
    """

    path: str
    target: str
    positive: str | bool | int | float | None = None
    kind: Literal["csv"] = "csv"
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    shift: str | None = None
    duplicates: Literal["drop", "keep"] = "drop"
    test_fraction: Share = 0.2
    validation_fraction: Share = 0.2
    train_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    segments: tuple[str, ...] = ()
    least_test_positives: Positive = 200
    validation_rows: str | None = None


@dataclass(frozen=True, config=STRICT)
class TableMlp:
    """A multilayer perceptron on a table's columns; its widths are the hyperparameter `hidden`.

    gate_hidden: width of the hidden layer of a gate that has a network of its own.
    """

    gate_hidden: Positive = 32
    kind: Literal["table_mlp"] = "table_mlp"


GIVEN = "teacher"  # how the one teacher from outside of a table is called among its arms
TableModel = Literal["xgboost", "random_forest", "lightgbm", "logistic_regression"]


@dataclass(frozen=True, config=STRICT)
class TableModels:
    """Classical models of a table as teachers, each calibrated.

    predictions: what students learn from: of each row what models say that were fitted without it (`out_of_fold`), or
    what a model says of rows that it was fitted on, as study 2's article does. folds: 5, or 10 under 2,000 rows.
    tuned: search each model's own hyperparameters, inside every fold; else the libraries' defaults.
    """

    models: tuple[TableModel, ...] = ("xgboost", "random_forest")
    tuned: bool = False
    predictions: Literal["out_of_fold", "in_sample"] = "out_of_fold"
    folds: Annotated[int, Field(ge=2, le=50)] | None = None
    kind: Literal["table_models"] = "table_models"

    def __post_init__(self) -> None:
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(f"models must be one or more different ones, got {list(self.models)}")


@dataclass(frozen=True, config=STRICT)
class MlpStudent:
    """A multilayer perceptron with ReLU; `hidden` lists the widths of its hidden layers."""

    hidden: tuple[Positive, ...] = (64, 32)
    kind: Literal["mlp"] = "mlp"


@dataclass(frozen=True, config=STRICT)
class MlpEnsemble:
    """`members` MLPs trained on labels from different seeds; the teacher's logits are the mean of theirs."""

    members: Positive = 12
    hidden: tuple[Positive, ...] = (256, 128, 64)
    dropout: tuple[float, ...] = (0.3, 0.3, 0.0)
    epochs: Positive = 30
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: Positive = 64
    kind: Literal["mlp_ensemble"] = "mlp_ensemble"

    def __post_init__(self) -> None:
        if len(self.dropout) != len(self.hidden) or not all(0 <= p <= 0.99 for p in self.dropout):
            raise ValueError(
                f"dropout needs one probability from 0 to 0.99 for each of the {len(self.hidden)} hidden layers, "
                f"got {list(self.dropout)}"
            )


Depth = Literal[8, 14, 18, 20, 34, 50]
Stem = Literal["cifar", "torchvision", "no_maxpool"]


@dataclass(frozen=True, config=STRICT)
class ResNetStudent:
    """A ResNet; `width` is the first stage's channels (default 64, or 16 below 18 layers), `outputs` the head's.

    stem: `cifar` is 3x3, `torchvision` 7x7 with stride 2 and a max-pool, `no_maxpool` the same without the pool.
    outputs: None for one a class. More are never right: they reproduce a released head that kept ImageNet's 1,000.
    """

    depth: Depth = 18
    width: Positive | None = None
    stem: Stem = "cifar"
    cbam: bool = False
    outputs: Annotated[int, Field(ge=2)] | None = None
    kind: Literal["resnet"] = "resnet"


@dataclass(frozen=True, config=STRICT)
class ResNetTeacher:
    """A ResNet trained on labels by SGD with momentum; a share `stop_fraction` of its rows decides when it stops.

    pretrained: start from torchvision's ImageNet weights where they can be had (18, 34 and 50 layers with a 7x7 stem).
    patience: epochs without a lower loss on the held-out share before training stops; the best epoch is kept.
    """

    depth: Depth = 50
    width: Positive | None = None
    stem: Stem = "cifar"
    cbam: bool = True
    pretrained: bool = False
    epochs: Positive = 30
    learning_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: Annotated[int, Field(ge=2)] = 64
    schedule: Literal["constant", "cosine"] = "constant"
    patience: Positive = 5
    stop_fraction: Share = 0.1
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        if self.pretrained and (self.depth < 18 or self.stem == "cifar" or self.width not in (None, 64)):
            raise ValueError(
                "pretrained weights exist for 18, 34 and 50 layers of width 64 with a 7x7 stem (torchvision or "
                f"no_maxpool), got depth={self.depth}, width={self.width}, stem={self.stem}"
            )


@dataclass(frozen=True, config=STRICT)
class Views:
    """How training images are augmented, and what is cached of the teacher on them.

    A view is a function of (image, number); epoch e shows view e mod `count`, in every arm. pad: pixels of padding
    for a random crop; flip: mirror half of them. cache_limit_mb: a larger cache is refused before it is built.
    alignment_channels: feature alignment aims at so many channels, a fixed seeded projection of the teacher's where it
    has more; `live` runs the teacher in every step instead and aligns all of them.
    """

    count: Positive = 8
    pad: int = Field(default=4, ge=0)
    flip: bool = True
    cache_limit_mb: Positive = 1500
    alignment_channels: Positive | Literal["live"] = 12


@dataclass(frozen=True, config=STRICT)
class Compute:
    """How images are trained on. precision: `auto` is bf16 where the processor has it and images are at least 16x16."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False


def _kind_or(default: str) -> Callable[[Any], Any]:
    """The tag of a union's member; what does not give its `kind` is the `default`, as before there were several."""

    def kind(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return kind


# Told apart by `kind`, so that an error speaks of the one that is meant.
Data = Annotated[
    Annotated[MakeClassification, pydantic.Tag("make_classification")]
    | Annotated[Digits, pydantic.Tag("digits")]
    | Annotated[Cifar10, pydantic.Tag("cifar10")]
    | Annotated[ImageFolder, pydantic.Tag("image_folder")]
    | Annotated[Promotions, pydantic.Tag("promotions")]
    | Annotated[CsvTable, pydantic.Tag("csv")],
    pydantic.Discriminator(_kind_or("make_classification")),
]
Student = Annotated[
    Annotated[MlpStudent, pydantic.Tag("mlp")]
    | Annotated[ResNetStudent, pydantic.Tag("resnet")]
    | Annotated[TorchvisionStudent, pydantic.Tag("torchvision")]
    | Annotated[TimmStudent, pydantic.Tag("timm")]
    | Annotated[FactoryStudent, pydantic.Tag("factory")]
    | Annotated[TableMlp, pydantic.Tag("table_mlp")],
    pydantic.Discriminator(_kind_or("mlp")),
]
Teacher = Annotated[
    Annotated[MlpEnsemble, pydantic.Tag("mlp_ensemble")]
    | Annotated[ResNetTeacher, pydantic.Tag("resnet")]
    | Annotated[TorchvisionTeacher, pydantic.Tag("torchvision")]
    | Annotated[TimmTeacher, pydantic.Tag("timm")]
    | Annotated[FactoryTeacher, pydantic.Tag("factory")]
    | Annotated[GraphTeacher, pydantic.Tag("torchscript")]
    | Annotated[GraphTeacher, pydantic.Tag("onnx")]
    | Annotated[LogitsTeacher, pydantic.Tag("logits")]
    | Annotated[TableModels, pydantic.Tag("table_models")],
    pydantic.Discriminator(_kind_or("mlp_ensemble")),
]
_OF_FILES: dict[str, type] = {
    "factory": FactoryTeacher,
    "torchscript": GraphTeacher,
    "onnx": GraphTeacher,
    "logits": LogitsTeacher,
}
KINDS: dict[str, dict[str, dict[str, type]]] = {
    "mlp": {
        "data": {"make_classification": MakeClassification},
        "student": {"mlp": MlpStudent, "factory": FactoryStudent},
        "teacher": {"mlp_ensemble": MlpEnsemble, **_OF_FILES},
    },
    "vision": {
        "data": {"digits": Digits, "cifar10": Cifar10, "image_folder": ImageFolder},
        "student": {
            "resnet": ResNetStudent,
            "torchvision": TorchvisionStudent,
            "timm": TimmStudent,
            "factory": FactoryStudent,
        },
        "teacher": {"resnet": ResNetTeacher, "torchvision": TorchvisionTeacher, "timm": TimmTeacher, **_OF_FILES},
    },
    "tabular": {
        "data": {"promotions": Promotions, "csv": CsvTable},
        "student": {"table_mlp": TableMlp, "factory": FactoryStudent},
        "teacher": {"table_models": TableModels, "logits": LogitsTeacher},
    },
}
TAGS = {kind for family in KINDS.values() for kinds in family.values() for kind in kinds}
