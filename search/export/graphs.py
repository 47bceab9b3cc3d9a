"""From modules to ONNX graphs that onnxruntime runs alone: dynamic batch, raw columns in, preprocessing included."""

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spaces import BadInput
from trainables.datasets import Column
from trainables.encoding import MISSING, Encoder
from trainables.models.resnet import Convolution

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = {"": 20, "ai.onnx.ml": 5}  # the latter has trees and categories in float64
IR_VERSION = 10
LOGIT, LOGITS, RESULT = "logit", "logits", "the result"
MISSING_TEXTS = ("", "NaN", "<missing>")


def refuse_uninstalled() -> None:
    """Raise BadInput for the first library that ONNX needs and that is not there."""
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise BadInput(
                f"an export as ONNX needs {name}, which is not installed: pip install 'distune[export]', or take "
                "--format safetensors"
            ) from None


def graph_of(module: nn.Module, example: Tensor) -> Any:
    """The ONNX model of a student that takes one tensor `x` (n, ...) and says `logits` (n, classes)."""
    plain = copy.deepcopy(module)
    for layer in plain.modules():
        if isinstance(layer, Convolution):  # its matrix product for small maps is a faster way to the same numbers
            object.__setattr__(layer, "__class__", nn.Conv2d)
    return _exported(plain, {"x": example}, LOGITS)


def table_graph(module: nn.Module, columns: Sequence[Column], example: Tensor) -> Any:
    """The ONNX model of a student of a table: an input (n,) for each column, `logit` (n,) of class 1 out.

    A number comes as float64, NaN where it is missing; a category as text, `missing_text` of its column where it is
    missing. example: (n, columns), categories as codes.
    """
    return _joined(columns, [(_exported(module, {"x": example}, RESULT), {"x": "table/x", RESULT: LOGIT})])


def blend_graph(
    module: nn.Module, columns: Sequence[Column], example: Tensor, encoder: Encoder, teachers: Any, count: int
) -> Any:
    """As `table_graph`, of a student with its teachers.

    encoder: of the teachers; teachers: an ONNX graph from `features` (n, features) to `said` (n, count).
    """
    said = torch.zeros(len(example), count, dtype=torch.float64)
    parts = [
        (_exported(encoder, {"x": example}, RESULT), {"x": "table/x", RESULT: "table/features"}),
        (teachers, {"features": "table/features", "said": "table/said"}),
        (
            _exported(module, {"x": example, "said": said}, RESULT),
            {"x": "table/x", "said": "table/said", RESULT: LOGIT},
        ),
    ]
    return _joined(columns, parts)


def input_name(column: Column) -> str:
    """The graph's input for a column: its name, unless the output is called so."""
    return f"column {column.name}" if column.name in ("", LOGIT) or column.name.startswith("table/") else column.name


def missing_text(column: Column) -> str:
    """What stands for a missing category: an empty text, unless that is a category."""
    return next(text for text in MISSING_TEXTS if text not in column.categories)


def model_of(graph: Any) -> Any:
    """A checked model of a graph made by hand."""
    import onnx
    from onnx import helper

    imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="distune")
    onnx.checker.check_model(model)
    return model


def _exported(module: nn.Module, inputs: Mapping[str, Tensor], output: str) -> Any:
    """torch's own export, whose names of inputs and outputs are those given here; the first axis is the batch.

    A result may not be called as a function of torch is (`logit`): the exporter gives values inside such names.
    """
    axes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), np.errstate(all="ignore"), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=axes,
                opset_version=OPSETS[""],
                verbose=False,
            )
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
    assert program is not None
    return program.model_proto


def _joined(columns: Sequence[Column], parts: Sequence[tuple[Any, Mapping[str, str]]]) -> Any:
    """One model of the columns' inputs and these models one after another.

    parts: a model, or a graph, with the outer names of its inputs and outputs; what is inside gets a name of its own.
    """
    from onnx import TensorProto, helper

    nodes, inputs, initializers = _columns(columns)
    for number, (part, outer) in enumerate(parts):
        graph = getattr(part, "graph", part)

        def named(name: str, number: int = number, outer: Mapping[str, str] = outer) -> str:
            return outer.get(name, f"table/{number}/{name}") if name else name

        for node in graph.node:
            copied = type(node)()
            copied.CopyFrom(node)
            copied.name = named(node.name)
            copied.input[:] = [named(name) for name in node.input]
            copied.output[:] = [named(name) for name in node.output]
            nodes.append(copied)
        for tensor in graph.initializer:
            copied = type(tensor)()
            copied.CopyFrom(tensor)
            copied.name = named(tensor.name)
            initializers.append(copied)
    output = helper.make_tensor_value_info(LOGIT, TensorProto.FLOAT, ["batch"])
    return model_of(helper.make_graph(nodes, "student", inputs, [output], initializers))


def _columns(columns: Sequence[Column]) -> tuple[list[Any], list[Any], list[Any]]:
    """Nodes, inputs and constants that make the table (n, columns) `table/x` of one input (n,) for each column.

    A category that is not listed has the code len(categories).
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, inputs, parts = [], [], []
    for i, column in enumerate(columns):
        name, values = input_name(column), f"table/values {i}"
        kind = TensorProto.STRING if column.categories else TensorProto.DOUBLE
        inputs.append(helper.make_tensor_value_info(name, kind, ["batch"]))
        if column.categories:
            texts = np.array([*column.categories, missing_text(column)], dtype=object)
            codes = np.array([*range(len(column.categories)), MISSING], dtype=np.float64)
            table = {
                "keys_tensor": numpy_helper.from_array(texts, "texts"),
                "values_tensor": numpy_helper.from_array(codes, "codes"),
                "default_tensor": numpy_helper.from_array(np.array([float(len(column.categories))]), "unknown"),
            }
            nodes.append(helper.make_node("LabelEncoder", [name], [values], domain="ai.onnx.ml", **table))
        parts.append(f"table/column {i}")
        nodes.append(helper.make_node("Unsqueeze", [values if column.categories else name, "table/axis"], parts[-1:]))
    nodes.append(helper.make_node("Concat", parts, ["table/x"], axis=1))
    return nodes, inputs, [numpy_helper.from_array(np.array([1]), "table/axis")]
