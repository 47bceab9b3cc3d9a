"""Networks of images by what a study says of them: the built-in ResNets, or one from outside wrapped as a `Network`.

From outside come torchvision's and timm's networks, by name, and whatever module a function of the user's returns.
"""

import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainables import by_path
from trainables.models.resnet import ResNet, feature_shapes
from trainables.names import nearest

Shapes = dict[str, tuple[int, int, int]]


class Unusable(ValueError):
    """A network or a teacher from outside that is not there, or does not do what it would have to."""


class HasMaps(Protocol):
    """What can say which of its layers have maps."""

    def shapes(self, channels: int, height: int, width: int) -> Shapes: ...


class Network(nn.Module):
    """A module from outside as the trainables use one: images (B, channels, H, W) -> logits (B, classes), and maps.

    make: builds the module, drawing its initial weights from torch's global generator. channels: of its images; grey
    ones (1) are shown to a network of colour images as three equal channels. classes: stays in the state.
    """

    classes: Tensor

    def __init__(self, make: Callable[[], nn.Module], classes: int, expand: bool = False) -> None:
        super().__init__()
        self._make, self._expand = make, expand
        self.module = make()
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, x: Tensor, layers: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the output of each submodule in `layers`, by its name in `named_modules`; never detached.

        Raises ValueError for a name that the module has not.
        """
        features: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, given: Any, output: Tensor) -> Tensor:
            features[name] = output
            return output.clone()  # what comes after may change its input in place

        handles = [self._layer(name).register_forward_hook(partial(keep, name)) for name in layers]
        try:
            logits: Tensor = self.module(x.expand(-1, 3, -1, -1) if self._expand else x)
        finally:
            for handle in handles:
                handle.remove()
        return logits, features

    def forward_features(self, x: Tensor, last: str) -> Tensor:
        """The output of the submodule `last`; errors as `forward`."""
        features: Tensor = self(x, [last])[1][last]
        return features

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Initial weights by the module's own rule, as one CPU generator says."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = self._make()
        self.module.load_state_dict(fresh.state_dict())

    @torch.no_grad()
    def shapes(self, channels: int, height: int, width: int) -> Shapes:
        """(C, H, W) of every submodule's map of 2x2 or more for such an image, in the order in which they are done."""
        found: Shapes = {}

        def keep(name: str, module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= 2:
                found.pop(name, None)
                found[name] = (output.shape[1], output.shape[2], output.shape[3])

        named = [(name, module) for name, module in self.module.named_modules() if name]
        handles = [module.register_forward_hook(partial(keep, name)) for name, module in named]
        training = self.training
        try:
            device = next((p.device for p in self.parameters()), torch.device("cpu"))
            self.eval()(torch.zeros(1, channels, height, width, device=device))
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        return found

    def _layer(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            raise ValueError(f"no layer {name}: this network has no submodule of that name") from None


def network(spec: Mapping[str, Any], channels: int, classes: int) -> ResNet | Network:
    """The network that a study's `student` or `teacher` describes, its weights not drawn yet.

    spec: `kind` resnet, torchvision, timm or factory, and what that kind has; `outputs` of a ResNet may ask for more
    than classes. Raises Unusable for a name or a function that is not there, and for one that raises.
    """
    if spec.get("kind", "resnet") == "resnet":
        outputs = spec.get("outputs") or classes
        return ResNet(
            spec["depth"], outputs, stem=spec["stem"], width=spec["width"], cbam=spec["cbam"], channels=channels
        )
    make = _maker(spec, channels, classes)
    return Network(make, classes, expand=spec["kind"] == "torchvision" and channels == 1)


def classes_of(state: Mapping[str, Tensor]) -> int:
    """How many outputs the network with this state has."""
    return int(state["classes"]) if "classes" in state else int(state["fc.weight"].shape[0])


def map_shapes(model: ResNet | HasMaps, channels: int, height: int, width: int) -> Shapes:
    """(C, H, W) of every layer with a map for an image (channels, height, width), the last one last."""
    if isinstance(model, ResNet):
        return feature_shapes(model, channels, height, width)
    return model.shapes(channels, height, width)


def identity(spec: Mapping[str, Any]) -> dict[str, str]:
    """What of a network from outside its study does not say: its library's version, or its file's fingerprint."""
    if spec["kind"] == "factory":
        return {"code": file_hash(_file_of(spec["function"]))}
    return {spec["kind"]: importlib.metadata.version(spec["kind"])} if spec["kind"] in ("torchvision", "timm") else {}


def described(spec: Mapping[str, Any]) -> str:
    """In words: `torchvision's resnet18`, `models.py:small`."""
    if spec["kind"] == "factory":
        path, _, name = str(spec["function"]).rpartition(":")
        return f"{Path(path).name}:{name}"
    return f"{spec['kind']}'s {spec['model']}"


def refuse_unfit(what: str, forward: Callable[[Tensor], Any], inputs: Tensor, classes: int) -> None:
    """Raise Unusable unless `forward` says finite logits (B, classes) of these inputs (B, ...).

    what: of which an error speaks.
    """
    try:
        with torch.no_grad():
            said = forward(inputs)
    except Exception as error:  # whatever a module from outside raises
        shape = "x".join(map(str, inputs.shape[1:]))
        raise Unusable(f"{what} cannot take inputs of {shape}: {_line(error)}") from error
    if not isinstance(said, Tensor):
        raise Unusable(f"{what} returns {type(said).__name__}, expected a tensor of logits (batch, {classes})")
    if tuple(said.shape) != (len(inputs), classes):
        raise Unusable(
            f"{what} returns a tensor of shape {tuple(said.shape)} for {len(inputs)} rows, expected logits "
            f"({len(inputs)}, {classes}), one for each of the {classes} classes of the data"
        )
    if not bool(said.isfinite().all()):
        raise Unusable(f"{what} returns logits that are not finite")


def refuse_untrainable(what: str, model: nn.Module, inputs: Tensor, classes: int) -> None:
    """Raise Unusable unless the module can be trained on inputs such as these; its running statistics are spoilt."""
    if not any(p.requires_grad for p in model.parameters()):
        raise Unusable(f"{what} has no parameter to train")
    for training in (True, False):
        model.train(training)
        refuse_unfit(what, lambda x: model(x)[0] if isinstance(model, Network) else model(x), inputs, classes)


def made(reference: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    """The module that `path/to/file.py:function` returns for these options.

    sizes: `classes`, and `channels` or `features`, which the function is given where it has a parameter of that name.
    Raises Unusable.
    """
    function, name = function_of(reference), reference.rpartition(":")[2]
    taken = inspect.signature(function).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    if "classes" not in taken and not anything:
        raise Unusable(f"{reference}: {name}{inspect.signature(function)} must take `classes`, the number of classes")
    if unknown := [option for option in options if option not in taken and not anything]:
        raise Unusable(
            f"{reference}: {name} takes no option {unknown[0]}{nearest(unknown[0], taken)}: it takes {', '.join(taken)}"
        )
    given = {key: value for key, value in sizes.items() if key in taken or anything}
    try:
        module = function(**given, **options)
    except Exception as error:  # whatever a user's function raises
        raise Unusable(f"{reference}: {name} raised {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise Unusable(f"{reference}: {name} returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def function_of(reference: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:function` names. Raises Unusable."""
    _file_of(reference)
    try:
        found: Callable[..., Any] = by_path.load(reference)
    except by_path.Unloadable as error:
        raise Unusable(str(error)) from error
    return found


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _maker(spec: Mapping[str, Any], channels: int, classes: int) -> Callable[[], nn.Module]:
    options = dict(spec["options"])
    if spec["kind"] == "factory":
        return partial(made, spec["function"], {"classes": classes, "channels": channels}, options)
    name = spec["model"]
    if spec["kind"] == "torchvision":
        from torchvision import models

        _refuse_unknown("torchvision", name, models.list_models(module=models))
        return partial(_of_library, "torchvision", models.get_model, name, {"num_classes": classes, **options})
    try:
        import timm
    except ImportError:
        raise Unusable(f"timm's {name} needs timm, which is not installed: pip install 'distune[timm]'") from None
    _refuse_unknown("timm", name, timm.list_models())
    return partial(
        _of_library, "timm", timm.create_model, name, {"num_classes": classes, "in_chans": channels, **options}
    )


def _of_library(library: str, create: Callable[..., nn.Module], name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return create(name, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # what they raise for an option
        raise Unusable(f"{library}'s {name} cannot be made with these options: {_line(error)}") from error


def _refuse_unknown(library: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise Unusable(
            f"{library} has no model {name!r}{nearest(name, known)}: the names of all {len(known)} are those of "
            f"{library}'s list_models()"
        )


def _file_of(reference: str) -> Path:
    path, _, name = reference.rpartition(":")
    if not path or not name.isidentifier():
        raise Unusable(f"{reference} must be path/to/file.py:function")
    located = by_path.located(path)
    if not located.is_file():
        raise Unusable(f"{path} is not there: give path/to/file.py:function with an existing file")
    return located


def _line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
