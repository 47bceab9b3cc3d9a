"""A table's teachers as an ONNX graph and as the files of their libraries."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from scipy.special import logit

from trainables.teachers.table_models import CLIP, KINDS, TableModels

SUFFIXES = {"xgboost": "ubj", "lightgbm": "txt", "random_forest": "skops", "logistic_regression": "skops"}
AT_MOST, BELOW = 0, 1  # a node's comparison of its feature with its threshold, as ONNX numbers them


@dataclass
class Trees:
    """The sum of one leaf of each tree, in the lists of ONNX's TreeEnsemble. comparison: AT_MOST or BELOW."""

    comparison: int
    roots: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    children: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))  # where it holds, where not
    are_leaves: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    leaves: list[float] = field(default_factory=list)

    def add(self, tree: Any) -> None:
        """tree: a leaf's value, or (feature, threshold, tree where the comparison holds, tree where not)."""
        self.roots.append(len(self.features))
        self._place(tree if isinstance(tree, tuple) else (0, 0.0, tree, tree))

    def _place(self, tree: tuple[Any, ...]) -> int:
        number = len(self.features)
        self.features.append(tree[0])
        self.thresholds.append(tree[1])
        for children, are_leaves in zip(self.children, self.are_leaves, strict=True):
            children.append(0)
            are_leaves.append(0)
        for side in (0, 1):
            child = tree[2 + side]
            if isinstance(child, tuple):
                self.children[side][number] = self._place(child)
            else:
                self.children[side][number], self.are_leaves[side][number] = len(self.leaves), 1
                self.leaves.append(float(child))
        return number

    def node(self, source: str, target: str) -> Any:
        """(n, features) float64 -> (n, 1) float64."""
        from onnx import helper, numpy_helper

        count = len(self.features)
        return helper.make_node(
            "TreeEnsemble",
            [source],
            [target],
            domain="ai.onnx.ml",
            n_targets=1,
            aggregate_function=1,  # the sum
            post_transform=0,
            tree_roots=self.roots,
            nodes_featureids=self.features,
            nodes_splits=numpy_helper.from_array(np.array(self.thresholds)),
            nodes_modes=numpy_helper.from_array(np.full(count, self.comparison, dtype=np.uint8)),
            nodes_truenodeids=self.children[0],
            nodes_falsenodeids=self.children[1],
            nodes_trueleafs=self.are_leaves[0],
            nodes_falseleafs=self.are_leaves[1],
            leaf_targetids=[0] * len(self.leaves),
            leaf_weights=numpy_helper.from_array(np.array(self.leaves)),
        )


def files(teachers: TableModels) -> dict[str, bytes]:
    """{`xgboost.ubj`: its bytes, ...}, as each library reads them itself, and what stands before and after them."""
    blobs = {f"{name}.{SUFFIXES[name]}": _stored(teachers, name) for name in teachers.names}
    around = {k: v.contiguous() for k, v in teachers.artefact.tensors.items() if k.startswith("encoder.")}
    return blobs | {"encoder_and_platt.safetensors": save(around | {"platt": torch.from_numpy(teachers.platt)})}


def graph(teachers: TableModels) -> Any:
    """The ONNX graph from `features` (n, features) float32 to `said` (n, teachers) float64, not calibrated."""
    from onnx import TensorProto, helper

    models = {name: KINDS[name].restored(_stored(teachers, name)) for name in teachers.names}
    nodes, constants = [helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.DOUBLE)], []
    for name, model in models.items():
        more, values = _GRAPHS[name](model, name)
        nodes += more
        constants += values
    nodes.append(helper.make_node("Concat", list(models), ["said"], axis=1))
    source = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", None])
    target = helper.make_tensor_value_info("said", TensorProto.DOUBLE, ["batch", len(teachers.names)])
    return helper.make_graph(nodes, "teachers", [source], [target], constants)


def _stored(teachers: TableModels, name: str) -> bytes:
    return bytes(teachers.artefact.tensors[f"model.{name}"].numpy().tobytes())


Part = tuple[list[Any], list[Any]]  # nodes from `wide` (n, features) float64 to the teacher's name (n, 1); constants


def _xgboost(model: Any, name: str) -> Part:
    learner = json.loads(model.save_raw("json"))["learner"]
    start = float(str(learner["learner_model_param"]["base_score"]).strip("[]"))
    trees = Trees(BELOW)
    for tree in learner["gradient_booster"]["model"]["trees"]:
        at = np.array(tree["split_conditions"], dtype=np.float32)  # its decimals stand for these
        trees.add(_nested(tree["left_children"], tree["right_children"], tree["split_indices"], at))
    return _margin(trees, name, float(logit(start)))


def _lightgbm(model: Any, name: str) -> Part:
    trees = Trees(AT_MOST)

    def nested(node: Mapping[str, Any]) -> Any:
        if "leaf_value" in node:
            return float(node["leaf_value"])
        left, right = nested(node["left_child"]), nested(node["right_child"])
        return int(node["split_feature"]), float(node["threshold"]), left, right

    for tree in model.dump_model()["tree_info"]:
        trees.add(nested(tree["tree_structure"]))
    return _margin(trees, name, 0.0)


def _random_forest(model: Any, name: str) -> Part:
    from onnx import helper

    count, trees = len(model.estimators_), Trees(AT_MOST)
    for one in model.estimators_:
        tree = one.tree_
        share = tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1) / count
        at = np.where(tree.children_left < 0, share, tree.threshold)
        trees.add(_nested(tree.children_left, tree.children_right, tree.feature, at))
    least = 1 / (2 * count)
    constants = {f"{name}.least": least, f"{name}.most": 1 - least, f"{name}.one": 1.0}
    p, rest, odds = f"{name}.p", f"{name}.rest", f"{name}.odds"
    nodes = [
        trees.node("wide", f"{name}.sum"),
        helper.make_node("Clip", [f"{name}.sum", f"{name}.least", f"{name}.most"], [p]),
        helper.make_node("Sub", [f"{name}.one", p], [rest]),
        helper.make_node("Div", [p, rest], [odds]),
        helper.make_node("Log", [odds], [name]),
    ]
    return nodes, _constants(constants)


def _logistic_regression(model: Any, name: str) -> Part:
    from onnx import helper

    raw, cut = f"{name}.raw", f"{name}.sum"
    nodes = [helper.make_node("MatMul", ["wide", f"{name}.weights"], [raw]), _added(raw, name, cut), _clip(cut, name)]
    weights = {f"{name}.weights": model.coef_.T.astype(np.float64)}
    return nodes, _constants(weights | _cut(name, float(model.intercept_[0])))


_GRAPHS = {
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "random_forest": _random_forest,
    "logistic_regression": _logistic_regression,
}


def _nested(left: Sequence[int], right: Sequence[int], feature: Sequence[int], at: NDArray[Any]) -> Any:
    """A tree from its lists, in which a leaf has no left child and its value where others have their threshold."""

    def node(i: int) -> Any:
        return float(at[i]) if left[i] < 0 else (int(feature[i]), float(at[i]), node(left[i]), node(right[i]))

    return node(0)


def _margin(trees: Trees, name: str, start: float) -> Part:
    nodes = [trees.node("wide", f"{name}.raw"), _added(f"{name}.raw", name, f"{name}.sum"), _clip(f"{name}.sum", name)]
    return nodes, _constants(_cut(name, start))


def _added(source: str, name: str, target: str) -> Any:
    from onnx import helper

    return helper.make_node("Add", [source, f"{name}.start"], [target])


def _clip(source: str, name: str) -> Any:
    from onnx import helper

    return helper.make_node("Clip", [source, f"{name}.least", f"{name}.most"], [name])


def _cut(name: str, start: float) -> dict[str, Any]:
    """What is added to a sum, and the logits at which it is cut, as the teacher's own are."""
    return {f"{name}.start": start, f"{name}.least": float(logit(CLIP)), f"{name}.most": -float(logit(CLIP))}


def _constants(values: Mapping[str, float | NDArray[np.float64]]) -> list[Any]:
    from onnx import numpy_helper

    return [numpy_helper.from_array(np.asarray(value, dtype=np.float64), name) for name, value in values.items()]
