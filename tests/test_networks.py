"""Networks from outside: by name or by a function, their layers by name, their seeds packed or one after another."""

import importlib.util
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from search.families import mlp as tables
from search.families import vision as images
from search.payload import refuse_unusable, trial_config
from spaces import BadInput, load_study
from tests.made_images import SMALL, context_of
from trainables import datasets, mlp, vision
from trainables.context import Context
from trainables.models.networks import Unusable, made, map_shapes, network
from trainables.models.stacked import StackedModule, stacked_of
from trainables.streams import Streams

SOURCE = '''
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Sizes:  # a decorator that looks its module up
    width: int


class Ordinary(nn.Module):
    """Changes its map in place and in a function, so that no module shows it."""

    def __init__(self, classes, channels, width=4):
        super().__init__()
        self.stem = nn.Conv2d(channels, Sizes(width).width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.stage = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(2 * width * 16, classes)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = torch.relu_(x)
        return self.fc(self.drop(self.stage(x).flatten(1)))


def picture(classes, channels, width=4):
    return Ordinary(classes, channels, width)


def table(classes, features, width=16, drop=0.0, norm=False):
    middle = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(features, width), *middle, nn.ReLU(), nn.Dropout(drop), nn.Linear(width, classes))


def perceptron(classes, features):
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


def raises(classes):
    raise RuntimeError("no weights\\nhere")


def number(classes):
    return classes


def nothing(width):
    return nn.Linear(width, 2)


def one_more(classes, features):
    return nn.Linear(features, classes + 1)


def frozen(classes, features):
    return nn.Linear(features, classes).requires_grad_(False)


def forgets(classes, features):
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    return Pair(features, classes)
'''


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "nets.py"
    path.write_text(SOURCE)
    return path


def of_factory(code, name, **options):
    return {"kind": "factory", "function": f"{code}:{name}", "options": options}


def digits(*overrides):
    study = load_study("digits-attention-transfer", [*SMALL[:2], *SMALL[3:], *overrides])
    return study, datasets.load(asdict(study.data)).without_test()


def set_to(part, spec):
    """An assignment of `--set` for a student or a teacher."""
    options = ", ".join(f"{k}: {v}" for k, v in spec["options"].items())
    rest = ", ".join(f"{k}: {v}" for k, v in spec.items() if k != "options")
    return f"{part}={{{rest}, options: {{{options}}}}}"


# networks and their layers


@pytest.mark.parametrize(
    ("spec", "layer", "shape"),
    [
        ({"kind": "torchvision", "model": "resnet18", "options": {}}, "layer2", (128, 4, 4)),
        ({"kind": "torchvision", "model": "mobilenet_v3_small", "options": {}}, "features.1", (16, 8, 8)),
        ({"kind": "torchvision", "model": "squeezenet1_1", "options": {}}, "features.3", (128, 7, 7)),
    ],
)
def test_a_network_of_torchvision_says_logits_and_the_maps_of_its_layers(spec, layer, shape):
    model, x = network(spec, 3, 7), torch.rand(2, 3, 32, 32)
    assert map_shapes(model, 3, 32, 32)[layer] == shape
    logits, features = model(x, [layer])
    assert logits.shape == (2, 7)
    assert features[layer].shape == (2, *shape)
    assert torch.equal(model.eval()(x)[0], model.module(x))


def test_grey_images_are_shown_as_three_equal_channels():
    model = network({"kind": "torchvision", "model": "resnet18", "options": {}}, 1, 10).eval()
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(model(x)[0], model.module(torch.cat([x] * 3, dim=1)))
    assert set(map_shapes(model, 1, 32, 32)) == set(map_shapes(model, 3, 32, 32))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_network_of_timm_says_logits_and_the_maps_of_its_layers():
    model = network({"kind": "timm", "model": "resnet10t", "options": {}}, 1, 5).eval()
    x = torch.rand(2, 1, 32, 32)
    logits, features = model(x, ["layer2"])
    assert logits.shape == (2, 5)
    assert features["layer2"].shape[1:] == map_shapes(model, 1, 32, 32)["layer2"]
    with pytest.raises(Unusable, match="did you mean 'resnet10t'"):
        network({"kind": "timm", "model": "resnet10", "options": {}}, 1, 5)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_its_networks_are_refused_with_what_to_install():
    with pytest.raises(Unusable, match=r"timm, which is not installed: pip install 'distune\[timm\]'"):
        network({"kind": "timm", "model": "resnet10t", "options": {}}, 1, 5)


def test_the_last_layer_with_a_map_is_the_last_before_the_pooling():
    names = list(map_shapes(network({"kind": "torchvision", "model": "resnet18", "options": {}}, 3, 10), 3, 64, 64))
    assert names[-1] == "layer4"
    assert "avgpool" not in names


def test_a_layer_is_shown_as_it_was_before_anything_changed_it_in_place(code):
    model = network(of_factory(code, "picture"), 1, 10)
    x = torch.rand(4, 1, 8, 8)
    logits, features = model(x, ["norm", "stage"])
    assert (features["norm"] < 0).any()
    assert torch.equal(features["norm"], model.module.norm(model.module.stem(x)))
    model.zero_grad()
    gradient = torch.autograd.grad(logits.sum(), features["norm"], retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    features["stage"].sum().backward()
    assert model.module.stem.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no layer stages"):
        model(x, ["stages"])


def test_initial_weights_are_a_function_of_the_stream_and_leave_torchs_own_alone(code):
    one, other = (network(of_factory(code, "picture"), 1, 10) for _ in range(2))
    before = torch.get_rng_state()
    for model in (one, other):
        model.initialise(Streams("s").generator("init", 3))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    other.initialise(Streams("s").generator("init", 4))
    assert not torch.equal(one.module.stem.weight, other.module.stem.weight)


# image students


@pytest.fixture(scope="module")
def own_student(code):
    """A study whose student is a function's, with an attention arm between layers of other names."""
    layers = 'space.layers.choices=["stem:layer1", "norm:layer1"]'
    study, data = digits(set_to("student", of_factory(code, "picture", width=6)), "teacher.width=8", layers)
    teacher = images.build_teacher(study, 0, data.train, data, 0, "cpu")
    return study, data, context_of(study, data.train, data.validation, images.label(study, teacher, data.train, data))


@pytest.mark.parametrize("arm", ["hard_labels", "kd", "kd_at", "kd_fa_at"])
def test_seeds_of_a_module_with_dropout_are_those_of_each_alone_and_resume_exactly(arm, own_student):
    study, _, context = own_student
    config = trial_config(study, arm, study.arms[arm].default, (0, 1), 2)
    *_, last = vision.train(config, context)
    together = last.state()
    alone = list(vision.train(replace(config, replicates=(1,)), context))[-1].state()
    of_second = {k: v for k, v in together.items() if k.startswith("1.")}
    assert all(torch.equal(v, alone[f"0.{k[2:]}"]) for k, v in of_second.items())
    first = next(vision.train(config, context))
    again = list(vision.train(config, replace(context, resume_epoch=1, resume=first.state())))[-1].state()
    assert all(torch.equal(again[k], v) for k, v in together.items())
    assert not torch.equal(first.state()["0.model.module.fc.weight"], together["0.model.module.fc.weight"])


def test_a_trained_module_learns_and_comes_back_as_it_was(own_student):
    study, data, context = own_student
    config = trial_config(study, "hard_labels", {**study.arms["hard_labels"].default, "learning_rate": 0.05}, (0,), 12)
    *_, last = vision.train(config, context)
    assert last.metrics["val_accuracy"][0] > 0.7
    assert last.parameters == sum(p.numel() for p in network(study.student_of("hard_labels"), 1, 10).parameters())
    student = images.student(study, "hard_labels", last.state(), 0)
    x = torch.from_numpy(data.validation.x).float() / 255
    with torch.no_grad():
        assert torch.allclose(student.eval()(x), last.logits(data.validation.x)[0], atol=1e-5)


def test_attention_transfer_pulls_the_students_map_towards_the_teachers(own_student):
    study, _, context = own_student
    hp = {
        **study.arms["kd_at"].default,
        "kd_weight": 0.0,
        "ce_weight": 0.0,
        "at_weight": 100.0,
        "layers": "norm:layer1",
    }

    def loss(epochs):
        return [r.metrics["loss_at"][0] for r in vision.train(trial_config(study, "kd_at", hp, (0,), epochs), context)]

    first, *_, last = loss(4)
    assert last < 0.8 * first


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["student={kind: torchvision, model: mobilnet_v3_small}"], "(did you mean 'mobilenet_v3_small'?)"),
        (["student={kind: torchvision, model: resnet18, options: {widht: 3}}"], "cannot be made with these options"),
        (["student={kind: torchvision, model: squeezenet1_1}"], "cannot take inputs of 1x8x8"),
        (["student={kind: factory, function: nowhere.py:net}"], "nowhere.py is not there"),
        (["student={kind: torchvision, model: resnet18}"], "layer 'layer9'"),
        (["student={kind: torchvision, model: resnet18}", "compute.compile=true"], "is for the built-in ResNets"),
    ],
)
def test_a_student_that_cannot_be_used_is_refused_in_one_line(overrides, expected):
    layers = 'space.layers.choices=["layer9:layer1", "conv1:layer1"]'
    study, _ = digits("teacher.width=8", layers, *overrides)
    with pytest.raises(BadInput) as refused:
        refuse_unusable(study, lambda line: None)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_arm_that_reproduces_a_released_resnet_goes_with_the_resnet():
    study, _ = digits("student={kind: torchvision, model: resnet18}")
    assert not [name for name in study.arms if name.startswith("released")]
    assert not study.claims
    assert all(arm.published is None for arm in study.arms.values())


# functions


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        ("raises", {}, "raises raised RuntimeError: no weights here"),
        ("number", {}, "number returned int, expected a torch.nn.Module"),
        ("nothing", {"width": 3}, "must take `classes`"),
        ("table", {"widht": 3}, "takes no option widht (did you mean 'width'?)"),
        ("tabel", {}, "has no function tabel (did you mean 'table'?)"),
    ],
)
def test_a_function_that_cannot_be_used_says_why(code, function, options, expected):
    with pytest.raises(Unusable) as refused:
        made(f"{code}:{function}", {"classes": 2, "features": 20}, options)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_run_says_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nowhere_at_all\n")
    with pytest.raises(Unusable, match=r"broken.py:1: ModuleNotFoundError"):
        made(f"{path}:net", {"classes": 2}, {})


# packs of tables


def table_study(code, function, **options):
    spec = set_to("student", of_factory(code, function, **options))
    study = load_study("mlp-ensemble", [spec, "data.n_samples=400", "data.fresh_rows=0", "teacher.members=2"])
    return study, datasets.load(asdict(study.data)).without_test()


@pytest.mark.parametrize(
    ("options", "why"),
    [({}, ""), ({"norm": True}, ""), ({"drop": 0.2}, "it draws random numbers, such as dropout")],
)
def test_packed_seeds_of_a_module_are_those_of_each_alone(code, options, why):
    study, data = table_study(code, "table", **options)
    config = trial_config(study, "hard_labels", study.arms["hard_labels"].default, (0, 1, 2), 3)
    context = context_of_table(study, data)
    stacked = stacked_of(study.student_of("hard_labels"), 20, 2, 3)
    assert stacked.why_alone == why
    torch.set_default_dtype(torch.float64)
    try:
        *_, last = mlp.train(config, context)
        packed = last.state()
        for place, replicate in enumerate(config.replicates):
            alone = list(mlp.train(replace(config, replicates=(replicate,)), context))[-1]
            for name, tensor in alone.state().items():
                if name.startswith("model.") and tensor.ndim:
                    assert torch.allclose(packed[name][place].double(), tensor[0].double(), atol=1e-10), name
            assert alone.metrics["val_accuracy"][0] == last.metrics["val_accuracy"][place]
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(packed["model.weights.0/weight"][0], packed["model.weights.0/weight"][1])


def context_of_table(study, data, *teachers):
    return Context(data.train, data.validation, 2, teachers, Streams(study.name))


def test_a_module_that_is_a_perceptron_trains_as_the_built_in_one_does(code):
    study, data = table_study(code, "perceptron")
    built_in = load_study("mlp-ensemble", ["data.n_samples=400", "data.fresh_rows=0"])
    config = trial_config(study, "hard_labels", study.arms["hard_labels"].default, (0, 1), 5)
    theirs = trial_config(built_in, "hard_labels", built_in.arms["hard_labels"].default, (0, 1), 5)
    own = list(mlp.train(config, context_of_table(study, data)))
    other = list(mlp.train(theirs, context_of_table(built_in, data)))
    assert own[-1].parameters == other[-1].parameters == 3490
    assert own[-1].metrics["loss_ce"] == pytest.approx(other[-1].metrics["loss_ce"], rel=0.15)
    student = tables.student(study, "hard_labels", own[-1].state(), 1)
    x = torch.from_numpy(data.validation.x).float()
    with torch.no_grad():
        assert torch.allclose(student.eval()(x), own[-1].logits(data.validation.x)[1], atol=1e-4)


def test_a_resumed_pack_with_dropout_is_as_if_it_had_never_stopped(code):
    study, data = table_study(code, "table", drop=0.5, norm=True)
    config = trial_config(study, "hard_labels", study.arms["hard_labels"].default, (0, 1), 3)
    context = context_of_table(study, data)
    results = [(r.epoch, r.state()) for r in mlp.train(config, context)]
    *_, again = mlp.train(config, replace(context, resume_epoch=1, resume=results[0][1]))
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in results[-1][1].items())


def test_a_module_that_vmap_cannot_run_trains_one_seed_after_another():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x) if float(x.sum()) > 0 else F.relu(self.fc(x))

    stacked = StackedModule(Asks, 2, 3, 2)
    assert stacked.why_alone.startswith("vmap cannot run it")
    stacked.initialise([torch.Generator().manual_seed(i) for i in (1, 2)])
    x = torch.rand(1, 5, 3)
    alone = Asks()
    alone.load_state_dict({name: tensor[1] for name, tensor in stacked.own().items()})
    assert torch.equal(stacked(x)[1], alone(x[0]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("one_more", "returns a tensor of shape (8, 3) for 8 rows, expected logits (8, 2)"),
        ("frozen", "has no parameter to train"),
        ("forgets", "returns tuple, expected a tensor of logits (batch, 2)"),
        ("picture", "raised TypeError"),
    ],
)
def test_a_table_student_that_cannot_be_used_is_refused_in_one_line(code, function, expected):
    study, _ = table_study(code, function)
    with pytest.raises(BadInput) as refused:
        refuse_unusable(study, lambda line: None)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_it_is_said_how_a_students_seeds_train(code):
    lines = []
    refuse_unusable(table_study(code, "table")[0], lines.append)
    refuse_unusable(table_study(code, "table", drop=0.1)[0], lines.append)
    assert lines == [
        "the student nets.py:table: seeds train together in one program",
        "the student nets.py:table: seeds train one after another, since it draws random numbers, such as dropout",
    ]
