"""What a study of each family may say about its data, student and teacher, and which hyperparameters it has.

`trainables` reads these as plain mappings; a test holds the two sides together.
"""

from typing import Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from spaces.space import STRICT

Positive = pydantic.PositiveInt
Variant = Literal["hard_labels", "label_smoothing", "kd"]

# The ordinary hyperparameters of a family, which every arm must give, and those that a variant adds.
ORDINARY: dict[str, tuple[str, ...]] = {"mlp": ("learning_rate", "weight_decay", "batch_size")}
OF_VARIANT: dict[str, tuple[str, ...]] = {
    "hard_labels": (),
    "label_smoothing": ("smoothing",),
    "kd": ("temperature", "kd_weight"),
}
NEEDS_TEACHER = ("kd",)
# What a hyperparameter may be at all, whatever the space says: (lowest, highest, whole number).
LIMITS: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (1e-8, 10.0, False),
    "weight_decay": (0.0, 10.0, False),
    "batch_size": (1, 1_000_000, True),
    "smoothing": (0.0, 1.0, False),
    "temperature": (1e-2, 1e3, False),
    "kd_weight": (0.0, 1.0, False),
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
class MlpStudent:
    """A multilayer perceptron with ReLU; `hidden` lists the widths of its hidden layers."""

    hidden: tuple[Positive, ...] = (64, 32)


@dataclass(frozen=True, config=STRICT)
class MlpEnsemble:
    """`members` MLPs trained on labels from different seeds; the teacher's logits are the mean of theirs."""

    members: Positive = 12
    hidden: tuple[Positive, ...] = (256, 128, 64)
    dropout: tuple[float, ...] = (0.3, 0.3, 0.0)
    epochs: Positive = 30
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: Positive = 64

    def __post_init__(self) -> None:
        if len(self.dropout) != len(self.hidden) or not all(0 <= p <= 0.99 for p in self.dropout):
            raise ValueError(
                f"dropout needs one probability from 0 to 0.99 for each of the {len(self.hidden)} hidden layers, "
                f"got {list(self.dropout)}"
            )
