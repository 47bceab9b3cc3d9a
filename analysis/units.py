"""How a metric is printed: accuracy in percent and points, AUC as it is."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How a metric is printed. values: what its numbers are; points: what a difference is in."""

    values: str
    points: str
    scale: float
    digits: int

    @staticmethod
    def of(metric: str) -> "Unit":
        """metric: such as test_accuracy or test_auc."""
        return Unit("AUC", "AUC", 1.0, 4) if metric.endswith("auc") else Unit("percent", "points", 100.0, 2)

    def value(self, value: float | None) -> str:
        return "-" if value is None else f"{self.scale * value:.{self.digits}f}"

    def difference(self, value: float | None) -> str:
        return "-" if value is None else f"{self.scale * value:+.{self.digits}f}"

    def interval(self, pair: Sequence[float] | None, sign: bool = False) -> str:
        if pair is None:
            return ""
        form = f"{'+' if sign else ''}.{self.digits}f"
        return f"[{self.scale * pair[0]:{form}}, {self.scale * pair[1]:{form}}]"
