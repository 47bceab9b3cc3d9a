"""Dimensions of a search space and the rules that every space keeps."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
Scalar = bool | int | float | str
EDGE = 0.05  # a tuned value this close to a bound, as a share of the range, is flagged `at edge`


@dataclass(frozen=True, config=STRICT)
class Range:
    """Real numbers from `low` to `high`, uniform on the line or, with `log`, on its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got low={self.low:g} and high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must start above 0, got low={self.low:g}")

    def at(self, u: float) -> float:
        """The value at the fraction `u` in [0, 1] of the range."""
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)  # rounding may step over an end

    def fraction(self, value: float) -> float:
        """Where `value` lies in the range: the inverse of `at`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def at_edge(self, value: Any) -> bool:
        """Whether `value` lies within 5 % of a bound, so that the true optimum may lie beyond it."""
        return not EDGE <= self.fraction(value) <= 1 - EDGE

    def contains(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True, config=STRICT)
class Choice:
    """One of a few values."""

    choices: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must be two or more different values, got {list(self.choices)}")

    def at(self, u: float) -> Scalar:
        return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]

    def at_edge(self, value: Any) -> bool:
        """A choice among names has no edge; one among ordered numbers has its first and last value."""
        numbers = all(isinstance(c, int | float) and not isinstance(c, bool) for c in self.choices)
        return numbers and len(self.choices) > 2 and value in (min(self.choices), max(self.choices))

    def contains(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return "one of " + ", ".join(str(c) for c in self.choices)


def _kind(value: Any) -> str:
    return "choice" if isinstance(value, Choice) or (isinstance(value, Mapping) and "choices" in value) else "range"


Dimension = Annotated[
    Annotated[Range, pydantic.Tag("range")] | Annotated[Choice, pydantic.Tag("choice")], pydantic.Discriminator(_kind)
]
Space = dict[str, Dimension]
Config = dict[str, Scalar]
TeacherRows = Literal["none", "own", "shuffled_within_class", "in_sample"]
