"""Classical models of a table as teachers: XGBoost, random forest, LightGBM, logistic regression.

They label the rows that they are fitted on out of fold: whatever is fitted, the preprocessing and the tuning too, is
fitted inside each fold, so that a model never labels a row that it has seen. Platt's calibration is fitted on these
predictions, and one refit on all rows predicts everywhere else. Of the libraries only those that a study names are
needed, and none is imported before it is.
"""

import hashlib
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import loguniform, randint, uniform
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RandomizedSearchCV, StratifiedKFold
from torch import Tensor

from trainables.artefacts import Artefact, build_once, is_stored
from trainables.binary import platt
from trainables.context import TableOutputs
from trainables.datasets import BadData, Column, Rows
from trainables.encoding import Encoder
from trainables.streams import Streams

KIND = "teachers"
VERSION = 1  # goes into the address: raise it when the same recipe would give other models
FEW_ROWS = 2000  # below, 10 folds instead of 5
LEAST = 6  # rows of the rarer class: with fewer, two folds and three inner ones cannot have one each
DRAWS = 12  # configurations that a tuned model is chosen from, in every fold anew
CLIP = 1e-6  # probabilities are at least so far from 0 and 1; those of forests 1 / (2 trees)
TREE_ROWS = 50_000  # bootstrap rows of a tree at most: a forest grown on 1,000,000 rows would take gigabytes
CHUNK = 65_536
FLAT = 1e-3  # the least slope of a calibration
STORABLE = {"sklearn.tree._tree.Tree"}  # what skops may load besides the types that it trusts itself
OF_BOOSTING = {  # where both boosting libraries are searched
    "n_estimators": randint(50, 401),
    "learning_rate": loguniform(0.02, 0.3),
    "subsample": uniform(0.6, 0.4),
    "colsample_bytree": uniform(0.5, 0.5),
    "reg_lambda": loguniform(0.1, 10.0),
}


class Kind(Protocol):
    """One kind of model: how it is made and tuned, what it says, how it is stored without a pickle.

    A model is what is kept of a fitted estimator: its booster, or itself. package: to install, and to import. ranges:
    where a tuned one is searched.
    """

    package: ClassVar[str]
    ranges: ClassVar[dict[str, Any]]

    def untrained(self, rows: int, seed: int) -> Any:
        """An estimator with the library's defaults, on one thread."""

    def kept(self, estimator: Any) -> Any: ...
    def logits(self, model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]: ...
    def stored(self, model: Any) -> bytes: ...
    def restored(self, blob: bytes) -> Any: ...

    def parameters(self, model: Any) -> int:
        """Nodes of trees, or coefficients."""


class XGBoost:
    package: ClassVar[str] = "xgboost"
    ranges: ClassVar[dict[str, Any]] = {
        **OF_BOOSTING,
        "max_depth": randint(2, 9),
        "min_child_weight": loguniform(1.0, 20.0),
    }

    def untrained(self, rows: int, seed: int) -> Any:
        from xgboost import XGBClassifier

        return XGBClassifier(eval_metric="logloss", random_state=seed, n_jobs=1)

    def kept(self, estimator: Any) -> Any:
        return estimator.get_booster()

    def logits(self, model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return _clipped(model.inplace_predict(features, predict_type="margin"))

    def stored(self, model: Any) -> bytes:
        return bytes(model.save_raw("ubj"))

    def restored(self, blob: bytes) -> Any:
        from xgboost import Booster

        return Booster({"nthread": 1}, model_file=bytearray(blob))

    def parameters(self, model: Any) -> int:
        return sum(tree.count("\n") for tree in model.get_dump())


class LightGBM:
    package: ClassVar[str] = "lightgbm"
    ranges: ClassVar[dict[str, Any]] = {
        **OF_BOOSTING,
        "subsample_freq": [1],
        "num_leaves": randint(4, 64),
        "min_child_samples": randint(5, 61),
    }

    def untrained(self, rows: int, seed: int) -> Any:
        from lightgbm import LGBMClassifier

        # Left alone, it times two ways of adding up and takes the faster one, and their sums differ in the last bits.
        return LGBMClassifier(verbose=-1, random_state=seed, n_jobs=1, deterministic=True, force_row_wise=True)

    def kept(self, estimator: Any) -> Any:
        return estimator.booster_

    def logits(self, model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return _clipped(model.predict(features, raw_score=True, num_threads=1))

    def stored(self, model: Any) -> bytes:
        return bytes(model.model_to_string().encode())

    def restored(self, blob: bytes) -> Any:
        from lightgbm import Booster

        return Booster(model_str=blob.decode())

    def parameters(self, model: Any) -> int:
        lines = model.model_to_string().splitlines()
        return sum(2 * int(line.removeprefix("num_leaves=")) - 1 for line in lines if line.startswith("num_leaves="))


class _Sklearn:
    """What scikit-learn's models have in common: skops stores them, zipped, since it writes many zeros."""

    package: ClassVar[str] = "skops"

    def kept(self, estimator: Any) -> Any:
        return estimator

    def stored(self, model: Any) -> bytes:
        import skops.io

        return bytes(skops.io.dumps(model, compression=zipfile.ZIP_DEFLATED, compresslevel=1))

    def restored(self, blob: bytes) -> Any:
        import skops.io

        unknown = skops.io.get_untrusted_types(data=blob)
        return skops.io.loads(blob, trusted=[name for name in unknown if name in STORABLE])


class RandomForest(_Sklearn):
    ranges: ClassVar[dict[str, Any]] = {
        "max_depth": [None, 16, 8],
        "min_samples_leaf": [1, 2, 5, 10, 20],
        "max_features": ["sqrt", 0.3, 0.6],
    }

    def untrained(self, rows: int, seed: int) -> Any:
        sampled = TREE_ROWS / rows if rows > TREE_ROWS else None
        return RandomForestClassifier(max_samples=sampled, random_state=seed, n_jobs=1)

    def logits(self, model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]:
        least = 1 / (2 * len(model.estimators_))
        return np.asarray(logit(model.predict_proba(features)[:, 1].clip(least, 1 - least)), dtype=np.float64)

    def parameters(self, model: Any) -> int:
        return sum(int(tree.tree_.node_count) for tree in model.estimators_)


class Logistic(_Sklearn):
    ranges: ClassVar[dict[str, Any]] = {"C": loguniform(1e-3, 1e2)}

    def untrained(self, rows: int, seed: int) -> Any:
        return LogisticRegression(max_iter=1000, random_state=seed)

    def logits(self, model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return _clipped(model.decision_function(features))

    def parameters(self, model: Any) -> int:
        return int(model.coef_.size + model.intercept_.size)


KINDS: dict[str, Kind] = {
    "xgboost": XGBoost(),
    "random_forest": RandomForest(),
    "lightgbm": LightGBM(),
    "logistic_regression": Logistic(),
}
MODELS: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class TableModels:
    """Fitted teachers; what they say is always the logit of class 1, a column for each of `names`."""

    artefact: Artefact
    names: tuple[str, ...]

    @property
    def fitted_on(self) -> NDArray[np.int64]:
        return self.artefact.fitted_on

    @property
    def parameters(self) -> int:
        """Nodes of trees and coefficients, of these refitted models together."""
        return sum(self.artefact.about["parameters"][name] for name in self.names)

    @property
    def out_of_fold(self) -> NDArray[np.float32]:
        """(n, teachers) calibrated, on the rows fitted on, in their order; from models that did not see the row."""
        return self._tensor("out_of_fold")[:, self._places].numpy()

    @property
    def in_sample(self) -> NDArray[np.float32]:
        """(n, teachers) not calibrated, of the refitted models on the rows that they were fitted on."""
        return self._tensor("in_sample")[:, self._places].numpy()

    @property
    def platt(self) -> NDArray[np.float32]:
        """(teachers, 2) slope, always above 0, and intercept: calibrated = slope x logit + intercept."""
        return self._tensor("platt")[self._places].numpy()

    def logits(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n, columns) as `Column` says -> (n, teachers): the refitted models, calibrated."""
        said = np.empty((len(x), len(self.names)), dtype=np.float32)
        slope, intercept = self.platt.T
        for start in range(0, len(x), CHUNK):
            raw = _said(self._models, self._encoder, x[start : start + CHUNK])
            said[start : start + CHUNK] = raw * slope + intercept
        return said

    def alone(self, name: str) -> "TableModels":
        """One of them."""
        return replace(self, names=(name,))

    def sizes(self) -> dict[str, int]:
        """Bytes of each refitted model as it is stored."""
        return {name: len(self._tensor(f"model.{name}")) for name in self.names}

    def outputs(self, validation: NDArray[np.float64] | None = None) -> TableOutputs:
        """What a trial is given; validation: (n, columns), rows of which the refitted models say something."""
        said = None if validation is None else self.logits(validation)
        return TableOutputs(self.names, self.out_of_fold, self.in_sample, self.fitted_on, self.platt, said)

    @property
    def _places(self) -> list[int]:
        return [self.artefact.about["recipe"]["models"].index(name) for name in self.names]

    def _tensor(self, name: str) -> Tensor:
        return self.artefact.tensors[name]

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {name: KINDS[name].restored(self._tensor(f"model.{name}").numpy().tobytes()) for name in self.names}

    @cached_property
    def _encoder(self) -> Encoder:
        state = self.artefact.tensors
        return Encoder.of({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})


def build(
    spec: Mapping[str, Any], columns: Sequence[Column], fit: Rows, teacher_set: int, streams: Streams
) -> TableModels:
    """Teacher set number `teacher_set` fitted on `fit`, from the cache or now; each set has folds and seeds of its own.

    spec: `models`, names of `MODELS`; `tuned`; `folds` (None: 5, or 10 under 2,000 rows). fit: x (n, columns) as
    `columns` says, y of 0 and 1. Raises BadData where a library is missing or there are too few rows of a class.
    """
    refuse_uninstalled(spec["models"])
    recipe = _recipe(spec, columns, fit, teacher_set, streams)
    artefact = build_once(KIND, recipe, fit.fingerprints(), lambda: fitted(spec, columns, fit, teacher_set, streams))
    return TableModels(artefact, tuple(spec["models"]))


def is_built(spec: Mapping[str, Any], columns: Sequence[Column], fit: Rows, teacher_set: int, streams: Streams) -> bool:
    """Whether `build` would find these teachers in the cache."""
    refuse_uninstalled(spec["models"])
    return is_stored(KIND, _recipe(spec, columns, fit, teacher_set, streams), fit.fingerprints())


def refuse_uninstalled(models: Sequence[str]) -> None:
    """Raise BadData for the first of these models whose library is not there."""
    there = [name for name, kind in KINDS.items() if importlib.util.find_spec(kind.package) is not None]
    for name in models:
        if name not in there:
            package = KINDS[name].package
            others = f", or take one of {', '.join(there)}" if there else ""
            raise BadData(f"the teacher {name} needs {package}, which is not installed: pip install {package}{others}")


def fitted(
    spec: Mapping[str, Any], columns: Sequence[Column], fit: Rows, teacher_set: int, streams: Streams
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fitted now, whatever the cache holds: the artefact's tensors and what else it says of itself. As for `build`."""
    folds = _folds(spec, fit)
    _refuse_few(fit, folds)
    raw = np.empty((len(fit), len(spec["models"])))
    shuffle = streams.number("folds", teacher_set) % 2**32
    split = StratifiedKFold(folds, shuffle=True, random_state=shuffle).split(fit.x, fit.y)
    for fold, (seen, held_out) in enumerate(split, start=1):
        raw[held_out] = _said(*_fit_on(spec, columns, fit.taken(seen), teacher_set, streams, fold), fit.x[held_out])
    calibration = np.array([_calibration(column, fit.y) for column in raw.T], dtype=np.float32)
    models, encoder = _fit_on(spec, columns, fit, teacher_set, streams, 0)
    tensors = {f"model.{name}": _as_tensor(KINDS[name].stored(model)) for name, model in models.items()}
    tensors |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors["out_of_fold"] = torch.from_numpy(raw * calibration[:, 0] + calibration[:, 1]).float()
    tensors["in_sample"] = torch.from_numpy(_said(models, encoder, fit.x)).float()
    tensors["platt"] = torch.from_numpy(calibration)
    parameters = {name: KINDS[name].parameters(model) for name, model in models.items()}
    return tensors, {"rows": len(fit), "parameters": parameters}


def _fit_on(
    spec: Mapping[str, Any], columns: Sequence[Column], rows: Rows, teacher_set: int, streams: Streams, fold: int
) -> tuple[dict[str, Any], Encoder]:
    """Each model, and the encoder, fitted on these rows alone. fold: 0 is the refit."""
    encoder = Encoder.fit(columns, rows.x)
    features = encoder.encode(rows.x)
    seeds = {name: streams.number(f"teacher {name}", teacher_set, fold) % 2**31 for name in spec["models"]}
    return {name: _fit_one(KINDS[name], features, rows.y, spec["tuned"], seeds[name]) for name in seeds}, encoder


def _fit_one(kind: Kind, features: NDArray[np.float32], labels: NDArray[np.int64], tuned: bool, seed: int) -> Any:
    """A model with the library's defaults, or with those of `DRAWS` draws that have the best AUC in 3 inner folds."""
    estimator = kind.untrained(len(labels), seed)
    if not tuned:
        return kind.kept(estimator.fit(features, labels))
    inner = StratifiedKFold(3, shuffle=True, random_state=seed)
    search = RandomizedSearchCV(
        estimator, kind.ranges, n_iter=DRAWS, scoring="roc_auc", cv=inner, random_state=seed, error_score="raise"
    )
    return kind.kept(search.fit(features, labels).best_estimator_)


def _said(models: Mapping[str, Any], encoder: Encoder, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, columns) -> (n, teachers) logits, not calibrated."""
    features = encoder.encode(x)
    return np.stack([KINDS[name].logits(model, features) for name, model in models.items()], axis=1)


def _calibration(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Platt's slope and intercept; the classes' rates alone where the slope would not be above FLAT.

    Labels without a signal give a negative one: a row that is left out takes its label with it, so what is said of it
    leans the other way, and turned around it would tell the label.
    """
    slope, intercept = platt(logits, labels)
    if slope > FLAT:
        return slope, intercept
    return FLAT, float(logit(labels.mean())) - FLAT * float(logits.mean())


def _folds(spec: Mapping[str, Any], fit: Rows) -> int:
    return int(spec["folds"] or (10 if len(fit) < FEW_ROWS else 5))


def _refuse_few(fit: Rows, folds: int) -> None:
    if set(np.unique(fit.y)) != {0, 1}:
        raise BadData(f"models of a table need rows labelled 0 and 1, got labels {np.unique(fit.y).tolist()}")
    rarer, needed = int(np.bincount(fit.y).min()), max(folds, LEAST)
    if rarer < needed:
        raise BadData(f"{folds} folds need {needed} rows of each class, got {rarer}: give more rows, or fewer folds")


def _recipe(
    spec: Mapping[str, Any], columns: Sequence[Column], fit: Rows, teacher_set: int, streams: Streams
) -> dict[str, Any]:
    """What the artefact's address is made of, besides fingerprints: the rows in their order, and the libraries too.

    Which predictions students learn from is left out: the artefact has both.
    """
    packages = {"scikit-learn", *(KINDS[name].package for name in spec["models"])}
    rows = np.stack([fit.fingerprints(), fit.y]).tobytes() + np.ascontiguousarray(fit.x).tobytes()
    return {
        "what": "table models",
        "version": VERSION,
        "models": list(spec["models"]),
        "tuned": bool(spec["tuned"]),
        "folds": _folds(spec, fit),
        "columns": [[column.name, list(column.categories)] for column in columns],
        "libraries": {package: importlib.metadata.version(package) for package in sorted(packages)},
        "streams": [streams.study, streams.seed],
        "teacher_set": teacher_set,
        "rows": hashlib.sha256(rows).hexdigest(),
    }


def _clipped(logits: Any) -> NDArray[np.float64]:
    """Logits (n,) of probabilities within CLIP of 0 and 1 are cut there."""
    return np.asarray(logits, dtype=np.float64).clip(logit(CLIP), -logit(CLIP))


def _as_tensor(blob: bytes) -> Tensor:
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)
