"""From a table's columns to what a network reads: fitted on the rows to fit on, and part of every student.

Numbers are imputed by their median, made symmetric (Yeo-Johnson), standardised and cut at 10, with an indicator where
values were missing; categories are one-hot, and a category that was not there is a row of zeros. scikit-learn fits it;
torch applies it, so that a deployed student needs nothing else.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, PowerTransformer
from torch import Tensor, nn

from trainables.datasets import Column

MISSING = -1.0  # the code of a category that is not given
MAX_CATEGORIES = 32  # of one column; the rarer ones share a feature
FITTED_ON = 100_000  # rows, spread evenly, are enough to fit it
FARTHEST = 10.0  # standard deviations: beyond what was fitted on, the transformation may grow without bound
CHUNK = 65_536


class Encoder(nn.Module):
    """(n, columns) float64, as `Column` says -> (n, features) float32.

    names: of the features, numbers first, then indicators of missing numbers, then categories. All that it needs is in
    its buffers, the columns' names as JSON among them.
    """

    numbers: Tensor
    gaps: Tensor
    median: Tensor
    power: Tensor
    mean: Tensor
    scale: Tensor
    of_column: Tensor
    of_code: Tensor

    def __init__(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.columns = tuple(Column(name, tuple(categories)) for name, categories in about["columns"])
        self.names: tuple[str, ...] = tuple(about["names"])
        text = json.dumps(dict(about)).encode()
        self.register_buffer("about", torch.frombuffer(bytearray(text), dtype=torch.uint8))
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @staticmethod
    def fit(columns: Sequence[Column], x: NDArray[np.float64]) -> "Encoder":
        """Fitted on these rows alone. A column that has one value in them says nothing and gets no feature."""
        x = x[:: max(1, len(x) // FITTED_ON)]
        numbers = [i for i, c in enumerate(columns) if not c.categories and _varies(x[:, i])]
        gaps = [i for i, c in enumerate(columns) if not c.categories and _has_gaps(x[:, i])]
        named = [i for i, c in enumerate(columns) if c.categories and _varies(np.nan_to_num(x[:, i], nan=MISSING))]
        median, power = _fit_numbers(x[:, numbers])
        names, of_column, of_code = _fit_categories(columns, x, named)
        tensors = {
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "gaps": torch.tensor(gaps, dtype=torch.int64),
            "median": torch.from_numpy(median),
            "power": torch.from_numpy(power["power"]),
            "mean": torch.from_numpy(power["mean"]),
            "scale": torch.from_numpy(power["scale"]),
            "of_column": torch.tensor(of_column, dtype=torch.int64),  # (one-hot features,)
            "of_code": of_code,  # (one-hot features, codes + 1) whether the feature stands for this code; 0: missing
        }
        of_numbers = [columns[i].name for i in numbers] + [f"{columns[i].name} is missing" for i in gaps]
        about = {"columns": [[c.name, list(c.categories)] for c in columns], "names": of_numbers + names}
        return Encoder(about, tensors)

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> "Encoder":
        """The encoder whose `state_dict()` this is."""
        about = json.loads(bytes(state["about"].cpu().tolist()))
        return Encoder(about, {name: tensor for name, tensor in state.items() if name != "about"})

    def forward(self, x: Tensor) -> Tensor:
        numbers = x[:, self.numbers]
        numbers = torch.where(torch.isnan(numbers), self.median, numbers)
        numbers = ((yeo_johnson(numbers, self.power) - self.mean) / self.scale).clamp(-FARTHEST, FARTHEST)
        gaps = torch.isnan(x[:, self.gaps])
        codes = torch.nan_to_num(x[:, self.of_column], nan=MISSING).long() + 1
        known = codes < self.of_code.shape[1]
        row = torch.arange(len(self.of_column), device=x.device)
        categories = self.of_code[row, torch.where(known, codes, 0)] & known
        return torch.cat([numbers.float(), gaps.float(), categories.float()], dim=1)

    @torch.no_grad()
    def encode(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """The same for an array, in chunks."""
        encoded = np.empty((len(x), len(self.names)), dtype=np.float32)
        for start in range(0, len(x), CHUNK):
            part = torch.from_numpy(np.array(x[start : start + CHUNK], dtype=np.float64))
            encoded[start : start + CHUNK] = self(part).numpy()
        return encoded


def yeo_johnson(x: Tensor, power: Tensor) -> Tensor:
    """Yeo and Johnson's transformation, Biometrika 87 (2000), equation 2.1; x: (n, columns), power: (columns,)."""
    right, left = x.clamp_min(0.0), (-x).clamp_min(0.0)
    log_right, log_left = torch.log1p(right), torch.log1p(left)
    other = 2.0 - power
    at_right = torch.where(power == 0, log_right, torch.expm1(power * log_right) / torch.where(power == 0, 1.0, power))
    at_left = torch.where(other == 0, log_left, torch.expm1(other * log_left) / torch.where(other == 0, 1.0, other))
    return torch.where(x >= 0, at_right, -at_left)


def _varies(column: NDArray[np.float64]) -> bool:
    given = column[~np.isnan(column)]
    return bool(len(given) and given.min() < given.max())


def _has_gaps(column: NDArray[np.float64]) -> bool:
    missing = np.isnan(column)
    return bool(missing.any() and not missing.all())


def _fit_numbers(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Medians (columns,), and power, mean and scale of the Yeo-Johnson transform, each (columns,)."""
    if not x.shape[1]:
        none = np.zeros(0)
        return none, {"power": none, "mean": none, "scale": none}
    imputer = SimpleImputer(strategy="median").fit(x)
    transformer = PowerTransformer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer.fit(imputer.transform(x))
    scaler = transformer._scaler
    moments = {"power": transformer.lambdas_, "mean": scaler.mean_, "scale": scaler.scale_}
    found = {name: np.asarray(v, dtype=np.float64) for name, v in moments.items()}
    broken = ~np.isfinite(np.stack(list(found.values()))).all(axis=0)  # values near the largest that there are
    plain = {"power": 1.0, "mean": imputer.statistics_, "scale": np.nanmax(np.abs(x), axis=0)}
    return imputer.statistics_, {name: np.where(broken, plain[name], v) for name, v in found.items()}


def _fit_categories(
    columns: Sequence[Column], x: NDArray[np.float64], named: Sequence[int]
) -> tuple[list[str], list[int], Tensor]:
    """Names of the one-hot features, the column of each, and which codes (missing first) each stands for."""
    names: list[str] = []
    of_column: list[int] = []
    codes = max([len(columns[i].categories) for i in named], default=0) + 1
    rows: list[NDArray[np.bool_]] = []
    for i in named:
        values = np.nan_to_num(x[:, [i]], nan=MISSING)
        one_hot = OneHotEncoder(max_categories=MAX_CATEGORIES, handle_unknown="ignore", sparse_output=False).fit(values)
        every = np.arange(-1.0, len(columns[i].categories))[:, None]
        for feature in one_hot.transform(every).T.astype(bool):
            stands_for = np.zeros(codes, dtype=bool)
            stands_for[: len(every)] = feature
            labels = ["missing", *columns[i].categories]
            meant = [labels[code] for code in np.flatnonzero(feature)]
            names.append(f"{columns[i].name}={meant[0] if len(meant) == 1 else 'other'}")
            of_column.append(i)
            rows.append(stands_for)
    return names, of_column, torch.from_numpy(np.array(rows, dtype=bool).reshape(len(rows), codes))
