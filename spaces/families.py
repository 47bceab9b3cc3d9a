"""What a study of each family may say about its data, student and teacher, and which hyperparameters it has.

`trainables` reads these as plain mappings; a test holds the two sides together.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from spaces.space import STRICT

Positive = pydantic.PositiveInt
Share = Annotated[float, Field(gt=0, lt=1)]
Family = Literal["mlp", "vision"]
Variant = Literal[
    "hard_labels",
    "label_smoothing",
    "kd",
    "weighted_kd",
    "kd_fa",
    "kd_at",
    "kd_fa_at",
    "released_kd",
    "released_fa",
    "released_at",
    "released_fa_at",
    "half_ce",
]

# The ordinary hyperparameters of a family, which every arm must give, and those that a variant adds.
ORDINARY: dict[str, tuple[str, ...]] = {
    "mlp": ("learning_rate", "weight_decay", "batch_size"),
    "vision": ("learning_rate", "weight_decay", "batch_size", "schedule"),
}
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
}
NEEDS_TEACHER = tuple(v for v in OF_VARIANT if "kd" in v or v.startswith("released"))
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
}
LEAST_BATCH = {"mlp": 1, "vision": 2}  # a batch norm cannot train on one image
# `kd` weighs cross-entropy by what its own weight leaves of 1.
LIMITS_OF_VARIANT: dict[tuple[str, str], tuple[float, float, bool]] = {("kd", "kd_weight"): (0.0, 1.0, False)}
# Hyperparameters that are names. `layers` is checked against the networks before anything runs.
NAMES: dict[str, tuple[str, ...]] = {
    "schedule": ("constant", "cosine"),
    "at_form": ("code", "sum", "paper"),
    "mask": ("none", "grad_cam", "layer_cam", "random_mask"),
    "mask_edge": ("soft", "hard"),
    "layers": (),
}


@dataclass(frozen=True, config=STRICT)
class MakeClassification:
    """scikit-learn's generated classification table; `split_seed` draws the test rows and the validation rows."""

    kind: Literal["make_classification"] = "make_classification"
    n_samples: int = Field(default=5000, ge=200)
    n_features: Positive = 20
    n_informative: int = Field(default=10, ge=2)
    n_redundant: int = Field(default=5, ge=0)
    random_state: int = Field(default=42, ge=0, lt=2**32)
    split_seed: int = Field(default=42, ge=0, lt=2**32)
    fresh_rows: int = Field(default=60_000, ge=0)

    def __post_init__(self) -> None:
        if self.n_informative + self.n_redundant > self.n_features:
            raise ValueError(
                f"n_informative={self.n_informative} + n_redundant={self.n_redundant} is more than "
                f"n_features={self.n_features}"
            )


@dataclass(frozen=True, config=STRICT)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; `train_limit` keeps so many training images, stratified."""

    kind: Literal["digits"] = "digits"
    test_fraction: Share = 0.3
    validation_fraction: Share = 0.25
    train_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True, config=STRICT)
class Cifar10:
    """CIFAR-10 with its official test split, downloaded by torchvision into `root` (default: the cache folder)."""

    kind: Literal["cifar10"] = "cifar10"
    root: str | None = None
    validation_fraction: Share = 0.1
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    split_seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True, config=STRICT)
class ImageFolder:
    """Images as `train/<class>/...` and `test/<class>/...` under `path`.

    size: resize every image to size x size pixels; without it all must be of one size. skip_broken: leave out what
    cannot be decoded instead of refusing the folder.
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
    | Annotated[ImageFolder, pydantic.Tag("image_folder")],
    pydantic.Discriminator(_kind_or("make_classification")),
]
Student = Annotated[
    Annotated[MlpStudent, pydantic.Tag("mlp")] | Annotated[ResNetStudent, pydantic.Tag("resnet")],
    pydantic.Discriminator(_kind_or("mlp")),
]
Teacher = Annotated[
    Annotated[MlpEnsemble, pydantic.Tag("mlp_ensemble")] | Annotated[ResNetTeacher, pydantic.Tag("resnet")],
    pydantic.Discriminator(_kind_or("mlp_ensemble")),
]
KINDS: dict[str, dict[str, dict[str, type]]] = {
    "mlp": {
        "data": {"make_classification": MakeClassification},
        "student": {"mlp": MlpStudent},
        "teacher": {"mlp_ensemble": MlpEnsemble},
    },
    "vision": {
        "data": {"digits": Digits, "cifar10": Cifar10, "image_folder": ImageFolder},
        "student": {"resnet": ResNetStudent},
        "teacher": {"resnet": ResNetTeacher},
    },
}
TAGS = {kind for family in KINDS.values() for kinds in family.values() for kind in kinds}
