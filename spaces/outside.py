"""Students and teachers from outside: other libraries' networks, the user's own, files of models, tables of logits."""

import re
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from spaces.space import STRICT, Scalar

Positive = pydantic.PositiveInt
Share = Annotated[float, Field(gt=0, lt=1)]
Options = dict[str, Scalar | tuple[Scalar, ...]]
FittedOn = Literal["train", "train+validation", "unknown"]
HOW_FITTED = (
    "fitted_on is missing: say which rows the teacher was fitted on: train (the study's training rows, none of its "
    "validation rows), train+validation, or unknown"
)
REFERENCE = r"(?s).+:[A-Za-z_]\w*"


def refuse_no_function(reference: str) -> None:
    """Raise ValueError for what is not `path/to/file.py:function`."""
    if not re.fullmatch(REFERENCE, reference):
        raise ValueError(f"function must be path/to/file.py:function, got {reference!r}")


@dataclass(frozen=True, config=STRICT)
class TorchvisionStudent:
    """torchvision's network of this name, such as mobilenet_v3_small; its function is given the options."""

    model: str
    options: Options = Field(default_factory=dict)
    kind: Literal["torchvision"] = "torchvision"


@dataclass(frozen=True, config=STRICT)
class TimmStudent:
    """timm's network of this name, such as resnet10t; `timm.create_model` is given the options."""

    model: str
    options: Options = Field(default_factory=dict)
    kind: Literal["timm"] = "timm"


@dataclass(frozen=True, config=STRICT)
class FactoryStudent:
    """The module that a function of the user's returns: `path/to/file.py:function`.

    It is called with `classes`, with `channels` (of images) or `features` (of a table) if it takes them, and with the
    options; it draws its initial weights from torch's global generator, as layers do. The path is relative to the
    study's file.
    """

    function: str
    options: Options = Field(default_factory=dict)
    kind: Literal["factory"] = "factory"

    def __post_init__(self) -> None:
        refuse_no_function(self.function)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Weights:
    """What a teacher's own weights are: trained here on labels, as a ResNet teacher is, or read from a checkpoint.

    checkpoint: a state dict as safetensors, or as a torch file without pickled objects. fitted_on: of a checkpoint,
    the rows that it was fitted on. mean, std: of each channel, which its images are normalised by once they are in
    [0, 1]; without them they stay so. sha256: of the checkpoint; the study keeps it when it is first read.
    """

    options: Options = Field(default_factory=dict)
    checkpoint: str | None = None
    fitted_on: FittedOn | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    sha256: str | None = None
    epochs: Positive = 30
    learning_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: Annotated[int, Field(ge=2)] = 64
    schedule: Literal["constant", "cosine"] = "constant"
    patience: Positive = 5
    stop_fraction: Share = 0.1

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.fitted_on is None:
            raise ValueError(HOW_FITTED)
        if self.checkpoint is None and (self.fitted_on, self.mean, self.std) != (None, None, None):
            raise ValueError(
                "fitted_on, mean and std are for a teacher with a checkpoint; without one it is trained here"
            )
        _refuse_half_normalised(self.mean, self.std)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TorchvisionTeacher(_Weights):
    """torchvision's network of this name as teacher."""

    model: str
    kind: Literal["torchvision"] = "torchvision"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TimmTeacher(_Weights):
    """timm's network of this name as teacher."""

    model: str
    kind: Literal["timm"] = "timm"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FactoryTeacher(_Weights):
    """The module that a function of the user's returns, as teacher: see `FactoryStudent`.

    A table's is given features as they come, float32, and must have a checkpoint.
    """

    function: str
    kind: Literal["factory"] = "factory"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_no_function(self.function)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GraphTeacher:
    """A whole model in one file, which says logits and nothing else: TorchScript (`.pt`) or ONNX (`.onnx`).

    It takes one tensor: images in [0, 1], normalised by mean and std where they are given, or a table's features as
    they come, float32.
    """

    path: str
    fitted_on: FittedOn | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    sha256: str | None = None
    kind: Literal["torchscript", "onnx"]

    def __post_init__(self) -> None:
        if self.fitted_on is None:
            raise ValueError(HOW_FITTED)
        _refuse_half_normalised(self.mean, self.std)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LogitsTeacher:
    """What a teacher said of every row: `.npy` or `.npz` (rows, classes), `.csv` or `.parquet` with a column a class.

    Of two classes one column will do, the logit of the second. One row for each row of the data, in its order; or with
    `id`, the name of the column (or of the array) that says which row each is of: a file's name as `train/cat/1.png`,
    what a table of one's own has in its column of that name, else the row's number from 0.
    """

    path: str
    id: str | None = None
    fitted_on: FittedOn | None = None
    sha256: str | None = None
    kind: Literal["logits"] = "logits"

    def __post_init__(self) -> None:
        if self.fitted_on is None:
            raise ValueError(HOW_FITTED)


OutsideTeacher = TorchvisionTeacher | TimmTeacher | FactoryTeacher | GraphTeacher | LogitsTeacher
LOGITS_ONLY = ("torchscript", "onnx", "logits")
FILES = ("path", "checkpoint", "function")  # keys of a student or a teacher whose value is a file


def _refuse_half_normalised(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    if (mean is None) != (std is None) or (mean is not None and std is not None and len(mean) != len(std)):
        raise ValueError(f"mean and std go together, a number for each channel, got mean={mean} and std={std}")
