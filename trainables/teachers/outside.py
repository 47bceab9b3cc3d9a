"""Teachers from outside: a checkpoint of a module, a whole model in one file, or a table of logits.

Each becomes an artefact like those that are trained here. Its address is made of the file's own hash, so that the same
file is the same teacher wherever it lies; nothing that could run code is read from it.
"""

import hashlib
import io
import math
import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.artefacts import Artefact, build_once
from trainables.datasets import Rows, shortened
from trainables.datasets.order import Order, in_order
from trainables.models.networks import Unusable, described, file_hash, identity, made, network, refuse_unfit
from trainables.views import Normalise, as_tensor

KIND = "teachers"
VERSION = 1  # goes into the address: raise it when the same file would give another teacher
BLOB = "blob"  # the tensor that a whole model's file is kept in
NESTED = ("state_dict", "model_state_dict", "model")  # under which training scripts keep a state dict
PLACES = ("path", "checkpoint")  # where a file lies is no part of what it is
DRY = 2  # rows of a dry run
LARGEST = 6e4  # a logit's size, in half precision


class Graph(nn.Module):
    """A model of one file, TorchScript or ONNX: inputs (B, ...) float32 -> logits (B, classes), and no layers.

    numbers: how many its weights are, 0 where the file does not say.
    """

    def __init__(self, kind: str, blob: bytes) -> None:
        super().__init__()
        self.numbers = 0
        if kind == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated, yet there are such files
                self.script = torch.jit.load(io.BytesIO(blob), map_location="cpu")
            self.numbers = sum(p.numel() for p in self.script.parameters())
            self._session = None
            return
        self.numbers = _onnx_numbers(blob)
        self._session, self._name, self._form = _session(blob)

    def forward(self, x: Tensor, layers: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """As of a `Network`; raises ValueError if a layer is asked for."""
        if layers:
            raise ValueError(f"no layer {', '.join(layers)}: a model of one file gives logits only")
        if self._session is None:
            said: Tensor = self.script(x.contiguous())
            return said, {}
        given = (x * 255).round() if self._form == np.uint8 else x
        array = np.ascontiguousarray(given.detach().cpu().numpy().astype(self._form))
        return torch.from_numpy(self._session.run(None, {self._name: array})[0]).to(x.device), {}

    def shapes(self, channels: int, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """No layer has a map."""
        return {}


@dataclass(frozen=True)
class LogitsTable:
    """What a teacher said of some rows; of others it says nothing."""

    artefact: Artefact
    precision: ClassVar[str] = "fp32"
    device: ClassVar[str] = "cpu"

    @property
    def fitted_on(self) -> NDArray[np.int64]:
        return self.artefact.fitted_on

    @property
    def parameters(self) -> int:
        """Unknown."""
        return 0

    def of(self, rows: Rows) -> Tensor:
        """(n, classes) of these rows. Raises Unusable for one that the table lacks."""
        known, asked = self.artefact.tensors["rows"].numpy(), rows.fingerprints()
        places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        missing = int((known[places] != asked).sum())
        if missing:
            raise Unusable(f"the table of teacher logits has no row for {missing} of {len(asked)} rows that need one")
        return self.artefact.tensors["logits"][torch.from_numpy(places)]

    def member_logits(self, x: NDArray[Any]) -> Tensor:
        """(n, ...) rows as the dataset has them, told by what they hold -> (1, n, classes); errors as `of`."""
        return self.of(Rows(x, np.zeros(len(x), np.int64))).unsqueeze(0)

    def logits(self, x: NDArray[Any]) -> Tensor:
        """(n, ...) -> (n, classes)."""
        return self.member_logits(x)[0]


@dataclass(frozen=True)
class TableTeacher:
    """A module on a table's features, which come as they are, unscaled, as float32."""

    artefact: Artefact
    model: nn.Module

    @property
    def fitted_on(self) -> NDArray[np.int64]:
        return self.artefact.fitted_on

    @property
    def parameters(self) -> int:
        if isinstance(self.model, Graph):
            return self.model.numbers
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def member_logits(self, x: NDArray[np.float64], chunk: int = 4096) -> Tensor:
        """(n, features) -> (1, n, classes)."""
        parts = [self.model(part) for part in as_tensor(x).float().split(chunk)]
        return torch.cat([_logits_of(part).float() for part in parts]).unsqueeze(0)

    def logits(self, x: NDArray[np.float64]) -> Tensor:
        """(n, features) -> (n, classes)."""
        return self.member_logits(x)[0]


def stored(
    spec: Mapping[str, Any], data: Mapping[str, Any], fit: Rows, classes: int, fitted_on: NDArray[np.int64]
) -> Artefact:
    """The artefact of a teacher from outside, from the cache or read and tried on a few rows now.

    spec, data: the study's `teacher` and `data`; fit: rows that it will label; fitted_on: fingerprints of the rows that
    it declares to have seen. Raises Unusable, in one line, for whatever does not fit.
    """
    path = Path(spec.get("path") or spec["checkpoint"])
    refuse_changed(path, spec["sha256"])
    recipe = {
        "what": "from outside",
        "version": VERSION,
        "spec": {k: v for k, v in spec.items() if k not in PLACES} | {"identity": identity(spec)},
        "inputs": [list(fit.x.shape[1:]), classes],
    }
    if spec["kind"] == "logits":
        order = in_order(data, spec["id"])
        artefact = build_once(
            KIND, recipe | {"rows": _digest(order)}, fitted_on, lambda: (_table(path, spec, order, classes), {})
        )
        LogitsTable(artefact).of(fit)
        return artefact
    images = fit.x.ndim == 4
    if not images and spec["mean"]:
        raise Unusable("teacher.mean and std are for images; a table's teacher is given its features as they come")
    normal = _normalise(spec, fit.x.shape[1]) if images else {}
    example = as_tensor(fit.x[:DRY]).float()
    if images:
        example = Normalise(normal["normalise.mean"], normal["normalise.std"])(example / 255)

    def build() -> tuple[dict[str, Tensor], dict[str, Any]]:
        if spec["kind"] in ("torchscript", "onnx"):
            blob = path.read_bytes()
            _refuse_unfit_graph(path, spec["kind"], blob, example, classes)
            return {BLOB: torch.frombuffer(bytearray(blob), dtype=torch.uint8), **normal}, {}
        model = _untrained(spec, fit, classes)
        own = model.module if images else model
        load_into(own, read_checkpoint(path), f"{path} and {described(spec)}")
        model.eval()
        refuse_unfit(f"the teacher {described(spec)}", lambda x: _logits_of(model(x)), example, classes)
        return {k: v.contiguous() for k, v in model.state_dict().items()} | normal, {}

    return build_once(KIND, recipe, fitted_on, build)


def table_teacher(artefact: Artefact) -> TableTeacher | LogitsTable:
    """The teacher of a table whose artefact this is."""
    recipe = artefact.about["recipe"]
    (shape, classes), spec = recipe["inputs"], recipe["spec"]
    if spec["kind"] == "logits":
        return LogitsTable(artefact)
    if BLOB in artefact.tensors:
        return TableTeacher(artefact, graph_of(artefact))
    model = made(spec["function"], {"classes": classes, "features": shape[0]}, spec["options"])
    model.load_state_dict(artefact.tensors)
    return TableTeacher(artefact, model.requires_grad_(False).eval())


def graph_of(artefact: Artefact) -> Graph:
    """The model of a whole file."""
    return Graph(artefact.about["recipe"]["spec"]["kind"], artefact.tensors[BLOB].numpy().tobytes())


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of safetensors or of torch, which may hold tensors only. Raises Unusable."""
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise Unusable(f"{path} cannot be read as safetensors: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever there is to say, an error says
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Unusable(
            f"{path} holds pickled objects, which could run code when they are read, and is refused: save the weights "
            "alone, with safetensors or with torch.save(model.state_dict(), ...)"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        hint = "; give it as kind: torchscript" if "TorchScript" in str(error) else ""
        raise Unusable(f"{path} is no state dict that torch can read{hint}") from None
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise Unusable(
            f"{path} is no state dict: expected tensors by name, as torch.save(model.state_dict(), ...) keeps"
        )
    return found


def load_into(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict whole. Raises Unusable with the keys that are missing or too many, and shapes that differ."""
    own = module.state_dict()
    faults = []
    if missing := [name for name in own if name not in state]:
        faults.append(f"missing {shortened(missing, 3)}")
    if unexpected := [name for name in state if name not in own]:
        faults.append(f"unexpected {shortened(unexpected, 3)}")
    if other := [
        f"{name} {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]:
        faults.append(f"of another shape {shortened(other, 3)}")
    if faults:
        raise Unusable(f"{what} do not fit: {'; '.join(faults)}")
    module.load_state_dict(state)


def refuse_changed(path: Path, sha256: str) -> None:
    """Raise Unusable if the file is not there, or not the one that the study began with."""
    try:
        found = file_hash(path)
    except OSError as error:
        raise Unusable(f"the teacher's file {path} cannot be read: {error.strerror}") from None
    if found != sha256:
        raise Unusable(
            f"the teacher's file {path} is not the one that the study began with (sha256 {sha256[:12]}..., now "
            f"{found[:12]}...): put that back, or begin anew without teacher.sha256"
        )


def _untrained(spec: Mapping[str, Any], fit: Rows, classes: int) -> Any:
    if fit.x.ndim == 4:
        return network(spec, fit.x.shape[1], classes)
    return made(spec["function"], {"classes": classes, "features": fit.x.shape[1]}, spec["options"])


def _normalise(spec: Mapping[str, Any], channels: int) -> dict[str, Tensor]:
    """As the study says; without it, images stay in [0, 1]."""
    mean, std = spec["mean"] or (0.0,) * channels, spec["std"] or (1.0,) * channels
    if len(mean) != channels:
        raise Unusable(f"teacher.mean has {len(mean)} numbers, but the images have {channels} channels")
    return {"normalise.mean": torch.tensor(mean).float(), "normalise.std": torch.tensor(std).float()}


def _logits_of(said: Any) -> Tensor:
    found: Tensor = said[0] if isinstance(said, tuple) else said
    return found


# Whole models


def _refuse_unfit_graph(path: Path, kind: str, blob: bytes, example: Tensor, classes: int) -> None:
    try:
        graph = Graph(kind, blob)
    except Unusable:
        raise
    except Exception as error:  # whatever torch or onnxruntime raise for a file that is none of theirs
        text = " ".join(str(error).split())
        raise Unusable(f"{path} is no {kind} file that can be read: {type(error).__name__}: {text[:150]}") from None
    refuse_unfit(f"the teacher {path.name}", lambda x: graph.eval()(x)[0], example, classes)


def _session(blob: bytes) -> tuple[Any, str, Any]:
    """An ONNX model in onnxruntime, the name of its one input, and that input's type."""
    try:
        import onnxruntime
    except ImportError:
        raise Unusable(
            "an ONNX teacher needs onnxruntime, which is not installed: pip install 'distune[export]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    forms = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in forms:
        given = ", ".join(f"{one.name}: {one.type}" for one in inputs)
        raise Unusable(f"an ONNX teacher must take one tensor of numbers ({', '.join(forms)}), this takes {given}")
    return session, inputs[0].name, forms[inputs[0].type]


def _onnx_numbers(blob: bytes) -> int:
    """How many its weights are, 0 without the library onnx; refuses weights that lie in another file, unhashed."""
    try:
        import onnx
    except ImportError:
        return 0
    weights = onnx.load_from_string(blob).graph.initializer
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights):
        raise Unusable(
            "the ONNX teacher keeps its weights in another file: export it as one file, such as with "
            "torch.onnx.export(..., external_data=False)"
        )
    return sum(math.prod(tensor.dims) for tensor in weights)


# Tables of logits


def _table(path: Path, spec: Mapping[str, Any], order: Order, classes: int) -> dict[str, Tensor]:
    """`logits` (n, classes) and `rows` (n,), fingerprints in rising order, of the rows that the table has."""
    logits, ids = _read_logits(path, spec["id"])
    if logits.ndim == 1:
        logits = logits[:, None]
    if classes == 2 and logits.shape[1:] == (1,):
        if len(logits) and logits.min() >= 0 and logits.max() <= 1:
            raise Unusable(f"{path} holds probabilities: give logits, log(p / (1 - p)) of these")
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise Unusable(
            f"{path} has teacher logits of shape {tuple(logits.shape)}, expected (rows, {classes}), a column for each "
            f"class of the data{', or one, the logit of the second' if classes == 2 else ''}"
        )
    if not len(logits):
        raise Unusable(f"{path} has no rows")
    if not np.isfinite(logits).all():
        raise Unusable(f"{path} has {int((~np.isfinite(logits)).sum())} logits that are NaN or infinite")
    if np.abs(logits).max() > LARGEST:
        raise Unusable(f"{path} has a logit of {np.abs(logits).max():.3g}: their sizes may go to {LARGEST:g}")
    if logits.min() >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-3:
        raise Unusable(f"{path} holds probabilities: give logits, or the logarithm of these")
    if ids is None:
        if len(logits) != len(order.ids):
            raise Unusable(
                f"{path} has {len(logits)} rows, and the data have {len(order.ids)}: give one for each row in its "
                "order, or an id for each"
            )
        rows = order.fingerprints
    else:
        places = {name: i for i, name in enumerate(order.ids)}
        if unknown := [name for name in ids if name not in places]:
            raise Unusable(
                f"{path} has {len(unknown)} ids that the data have not ({shortened(unknown, 3)}): expected such as "
                f"{shortened(order.ids, 2)}"
            )
        if len(set(ids)) < len(ids):
            raise Unusable(f"{path} has {len(ids) - len(set(ids))} ids more than once")
        rows = order.fingerprints[[places[name] for name in ids]]
    rows, first = np.unique(rows, return_index=True)
    return {"logits": torch.from_numpy(logits[first].astype(np.float32)), "rows": torch.from_numpy(rows)}


def _read_logits(path: Path, id_name: str | None) -> tuple[NDArray[np.float64], list[str] | None]:
    """Logits, and the rows' ids where `id_name` names them."""
    import pandas as pd

    try:
        if path.suffix in (".csv", ".parquet"):
            frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            if id_name is not None and id_name not in frame:
                raise Unusable(f"{path} has no column {id_name!r} of ids: it has {shortened(list(map(str, frame)), 8)}")
            ids = None if id_name is None else [str(value) for value in frame.pop(id_name)]
            return frame.to_numpy(dtype=np.float64), ids
        if path.suffix not in (".npy", ".npz"):
            raise Unusable(f"teacher.path={path}: expected a table of logits as .npy, .npz, .csv or .parquet")
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            if id_name is not None:
                raise Unusable(f"{path} has no ids: give .npz, .csv or .parquet, or leave id out")
            return np.asarray(found, dtype=np.float64), None
        names = [name for name in (("logits",) if id_name is None else ("logits", id_name)) if name not in found]
        if names:
            raise Unusable(f"{path} has no array {names[0]!r}: it has {', '.join(found) or 'none'}")
        ids = None if id_name is None else [str(value) for value in found[id_name].tolist()]
        if ids is not None and len(ids) != len(found["logits"]):
            raise Unusable(f"{path} has {len(ids)} ids and {len(found['logits'])} rows of logits")
        return np.asarray(found["logits"], dtype=np.float64), ids
    except Unusable:
        raise
    except ImportError:
        raise Unusable(f"{path} needs pyarrow, which is not installed: pip install pyarrow, or give .csv") from None
    except Exception as error:  # whatever numpy or pandas raise for a file that is none of theirs
        raise Unusable(f"{path} cannot be read as a table of logits: {' '.join(str(error).split())[:200]}") from None


def _digest(order: Order) -> str:
    return hashlib.sha256(order.fingerprints.tobytes() + "\n".join(order.ids).encode()).hexdigest()
