"""trainables/models/resnet.py against torchvision, against a second CBAM of plain tensor operations, and by hand."""

import math

import pytest
import torch
import torchvision
from torch.testing import assert_close

from trainables.models.resnet import CBAM, STAGE_BLOCKS, Convolution, ResNet, feature_shapes, parameter_count


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, **how):
    return torch.randn(shape, generator=generator(), **how)


def initialised(*arguments, **options):
    model = ResNet(*arguments, **options)
    model.initialise(generator())
    return model


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def theirs(depth, classes):
    """torchvision's network with batch norms that change something."""
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)
    for index, module in enumerate(model.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator(index))
            module.bias.data.uniform_(-0.5, 0.5, generator=generator(index))
            module.running_mean.uniform_(-0.5, 0.5, generator=generator(index + 1))
            module.running_var.uniform_(0.5, 1.5, generator=generator(index + 1))
    return model


# torchvision's networks


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvisions_weights_load_strictly_and_give_its_logits(depth):
    reference = theirs(depth, classes=7).double()
    model = ResNet(depth, 7, stem="torchvision").double()
    model.load_state_dict(reference.state_dict(), strict=True)
    assert parameter_count(model) == parameter_count(reference)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_close(model.eval()(x)[0], reference.eval()(x), rtol=1e-9, atol=1e-9)
        assert_close(model.train()(x)[0], reference.train()(x), rtol=1e-9, atol=1e-9)
    assert_close(dict(model.named_buffers()), dict(reference.named_buffers()))


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_parameter_counts_with_1000_classes_are_torchvisions_published_ones(depth, count):
    assert parameter_count(ResNet(depth, 1000, stem="torchvision")) == count


def test_a_cifar_stem_takes_from_resnet18_what_a_3x3_kernel_has_less_than_a_7x7():
    with_7x7 = parameter_count(torchvision.models.resnet18(num_classes=10))
    assert parameter_count(ResNet(18, 10)) == with_7x7 - 64 * 3 * (7 * 7 - 3 * 3) == 11_173_962
    assert parameter_count(ResNet(18, 10, channels=1)) == 11_173_962 - 64 * 2 * 9


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (14, 2), (20, 3)])
def test_parameter_counts_of_the_cifar_depths_by_hand(depth, blocks):
    def convolution(fan_in, fan_out, size):  # and its batch norm
        return fan_in * fan_out * size**2 + 2 * fan_out

    same = sum((2 * blocks - 1) * convolution(width, width, 3) for width in (16, 32, 64))
    first = convolution(16, 16, 3) + convolution(16, 32, 3) + convolution(32, 64, 3)
    shortcuts = convolution(16, 32, 1) + convolution(32, 64, 1)
    assert parameter_count(ResNet(depth, 10)) == convolution(3, 16, 3) + same + first + shortcuts + 64 * 10 + 10


# maps


@pytest.mark.parametrize(
    ("depth", "stem", "side", "sides"),
    [
        (18, "torchvision", 32, [8, 4, 2, 1]),
        (18, "no_maxpool", 32, [16, 8, 4, 2]),
        (18, "cifar", 32, [32, 16, 8, 4]),
        (50, "torchvision", 224, [56, 28, 14, 7]),
        (8, "cifar", 8, [8, 4, 2]),
    ],
)
def test_sizes_of_the_maps(depth, stem, side, sides):
    shapes = feature_shapes(ResNet(depth, 10, stem=stem), 3, side, side)
    first = {8: 16, 18: 64, 50: 256}[depth]
    assert shapes == {f"layer{i + 1}": (first * 2**i, s, s) for i, s in enumerate(sides)}


@pytest.mark.parametrize("stem", ["torchvision", "no_maxpool", "cifar"])
def test_feature_shapes_are_those_of_a_real_forward_of_any_image(stem):
    model = ResNet(14, 5, stem=stem, channels=2, width=8, cbam=True)
    logits, features = model(images(3, 2, 17, 24), model.layer_names)
    assert logits.shape == (3, 5)
    assert {name: (3, *shape) for name, shape in feature_shapes(model, 2, 17, 24).items()} == {
        name: tuple(output.shape) for name, output in features.items()
    }


@pytest.mark.parametrize("training", [True, False])
def test_feature_shapes_leaves_the_model_as_it_is(training):
    model = ResNet(8, 10, cbam=True).train(training)
    tensors, before = list(model.state_dict(keep_vars=True).values()), state_of(model)
    feature_shapes(model, 3, 16, 16)
    assert same_state(before, state_of(model))
    assert all(now is then for now, then in zip(model.state_dict(keep_vars=True).values(), tensors, strict=True))
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("depth", [8, 50])
def test_width_is_the_first_stages_and_doubles(depth):
    expansion = 4 if depth == 50 else 1
    shapes = feature_shapes(ResNet(depth, 10, width=12), 3, 32, 32)
    assert [channels for channels, _, _ in shapes.values()] == [expansion * 12 * 2**i for i in range(len(shapes))]


def test_a_given_default_width_changes_nothing():
    assert parameter_count(ResNet(18, 10, width=64)) == parameter_count(ResNet(18, 10))
    assert parameter_count(ResNet(20, 10, width=16)) == parameter_count(ResNet(20, 10))


# features


def test_only_the_stages_asked_for_come_back_and_the_logits_do_not_depend_on_them():
    model, x = initialised(8, 10).eval(), images(2, 3, 8, 8)
    logits, none = model(x)
    assert none == {}
    for asked in (["layer2"], ("layer3", "layer1"), {"layer1", "layer2", "layer3"}):
        again, features = model(x, asked)
        assert features.keys() == set(asked)
        assert torch.equal(again, logits)
    assert_close(model.fc(features["layer3"].mean(dim=(2, 3))), logits)


@pytest.mark.parametrize("name", ["layer1", "layer2", "layer3"])
def test_a_loss_on_a_feature_reaches_the_first_convolution(name):
    model = initialised(8, 10)
    _, features = model(images(4, 3, 8, 8), [name])
    (gradient,) = torch.autograd.grad(features[name].square().mean(), model.conv1.weight)
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() == gradient.numel()


@pytest.mark.parametrize("name", ["layer1", "layer2", "layer3"])
def test_forward_features_is_the_full_forwards_feature_and_computes_nothing_behind_it(name):
    model, x = initialised(8, 10, cbam=True).eval(), images(2, 3, 8, 8)
    expected = model(x, [name])[1][name]
    ran = []
    for child, module in model.named_children():
        module.register_forward_hook(lambda *_, child=child: ran.append(child))
    assert torch.equal(model.forward_features(x, name), expected)
    assert [child for child in ran if child in (*model.layer_names, "fc")] == list(
        model.layer_names[: model.layer_names.index(name) + 1]
    )


def test_an_unknown_layer_is_refused_with_those_that_exist():
    model, x = ResNet(8, 10), images(2, 3, 8, 8)
    refusal = r"no layer fc, layer4: this network has layer1, layer2, layer3$"
    with pytest.raises(ValueError, match=refusal):
        model(x, ["layer4", "layer1", "fc"])
    with pytest.raises(ValueError, match=r"no layer layer4: this network has layer1, layer2, layer3$"):
        model.forward_features(x, "layer4")


# CBAM


def plain_cbam(x, weights, batch_statistics):
    """CBAM from arXiv 1807.06521 and the authors' code, with sums alone; weights: a CBAM's state dict."""

    def mlp(pooled):
        hidden = (torch.einsum("bc,hc->bh", pooled, weights["mlp.0.weight"]) + weights["mlp.0.bias"]).clamp(min=0)
        return torch.einsum("bh,ch->bc", hidden, weights["mlp.2.weight"]) + weights["mlp.2.bias"]

    def sigmoid(z):
        return 1 / (1 + (-z).exp())

    batch, channels, height, width = x.shape
    pixels = x.reshape(batch, channels, height * width)
    x = x * sigmoid(mlp(pixels.sum(2) / (height * width)) + mlp(pixels.max(2).values)).reshape(batch, channels, 1, 1)

    padded = torch.zeros(batch, 2, height + 6, width + 6, dtype=x.dtype)
    padded[:, 0, 3:-3, 3:-3] = x.max(1).values
    padded[:, 1, 3:-3, 3:-3] = x.sum(1) / channels
    out = torch.zeros(batch, height, width, dtype=x.dtype)
    for pooling in range(2):
        for i in range(7):
            for j in range(7):
                out = out + weights["conv.weight"][0, pooling, i, j] * padded[:, pooling, i : i + height, j : j + width]
    mean, variance = weights["bn.running_mean"], weights["bn.running_var"]
    if batch_statistics:
        mean = out.mean()
        variance = (out - mean).square().mean()
    out = (out - mean) / (variance + 1e-5).sqrt() * weights["bn.weight"] + weights["bn.bias"]
    return x * sigmoid(out).reshape(batch, 1, height, width)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [3, 32])
def test_cbam_equals_a_second_implementation(channels, training):
    module = CBAM(channels).double().train(training)
    for index, tensor in enumerate((*module.parameters(), module.bn.running_mean, module.bn.running_var)):
        tensor.data.uniform_(0.1, 0.9, generator=generator(index))
    module.conv.weight.data.sub_(0.5)
    module.mlp[0].weight.data.sub_(0.5)
    weights = state_of(module)
    x = images(2, channels, 5, 9, dtype=torch.float64)
    assert_close(module(x), plain_cbam(x, weights, training), rtol=1e-9, atol=1e-12)


def test_cbam_adds_to_a_resnet50_what_the_authors_code_adds():
    with_cbam, without = (parameter_count(ResNet(50, 1000, stem="torchvision", cbam=cbam)) for cbam in (True, False))
    blocks = [(256, 3), (512, 4), (1024, 6), (2048, 3)]
    assert with_cbam - without == sum(n * (2 * c * (c // 16) + c // 16 + c + 98 + 2) for c, n in blocks) == 2_532_592


def test_cbam_adds_names_and_changes_none():
    plain, extra = ResNet(18, 10).state_dict().keys(), ResNet(18, 10, cbam=True).state_dict().keys()
    assert plain <= extra
    assert {name.split(".")[2] for name in extra - plain} == {"cbam"}
    assert len({name.rsplit(".cbam.")[0] for name in extra - plain}) == 8


def test_every_cbam_parameter_gets_a_gradient():
    model = initialised(8, 10, cbam=True, width=32)
    model(images(4, 3, 8, 8))[0].square().sum().backward()
    gates = {name: p.grad for name, p in model.named_parameters() if ".cbam." in name}
    assert len(gates) == 3 * 7
    assert all(gradient.isfinite().all() and gradient.count_nonzero() for gradient in gates.values())


@pytest.mark.parametrize(("depth", "last_norm"), [(8, "bn2"), (50, "bn3")])
def test_cbam_stands_between_the_last_batch_norm_and_the_addition(depth, last_norm):
    block = initialised(depth, 10, cbam=True, width=8).layer2[0].eval()
    getattr(block, last_norm).bias.data.fill_(1.0)  # what a gate before the batch norm would let through
    block.cbam.bn.bias.data.fill_(-1e4)  # closed
    x = images(2, block.conv1.in_channels, 6, 6)
    assert_close(block(x), block.downsample(x).relu())


def test_with_every_gate_open_a_cbam_network_is_the_plain_one():
    plain, gated = initialised(20, 10).eval(), initialised(20, 10, cbam=True).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    for module in gated.modules():
        if isinstance(module, CBAM):
            module.mlp[2].bias.data.fill_(1e4)
            module.bn.bias.data.fill_(1e4)
    x = images(2, 3, 8, 8)
    assert_close(gated(x)[0], plain(x)[0])


# initialise


def test_one_seed_gives_one_network_whatever_it_was_before_and_another_seed_another():
    trained, fresh = ResNet(8, 10, cbam=True), ResNet(8, 10, cbam=True)
    trained(images(4, 3, 8, 8))  # moves the running statistics
    for parameter in trained.parameters():
        parameter.data.add_(1.0)
    before = torch.get_rng_state()
    trained.initialise(generator(3))
    fresh.initialise(generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_state(state_of(trained), state_of(fresh))
    fresh.initialise(generator(4))
    for (name, a), b in zip(trained.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b) == ("bn" in name or "downsample.1" in name), name


def test_initial_weights_have_the_spread_of_their_fan():
    model = initialised(18, 100, cbam=True)
    block = model.layer4[1]
    assert block.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    assert model.layer4[0].downsample[0].weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.01)
    for linear in (model.fc, block.cbam.mlp[0], block.cbam.mlp[2]):
        bound = 1 / math.sqrt(linear.in_features)
        for tensor in (linear.weight, linear.bias):
            assert 0.9 * bound < tensor.abs().max().item() <= bound
            assert tensor.min().item() < 0 < tensor.max().item()


# what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 101}, "depth 101: allowed are 8, 14, 18, 20, 34, 50"),
        ({"depth": 18, "stem": "imagenet"}, "stem 'imagenet': allowed are cifar, torchvision, no_maxpool"),
        ({"depth": 18, "width": 0}, "width 0: allowed is a whole number of channels, 1 or more"),
        ({"depth": 18, "width": 32.0}, "width 32.0: allowed is a whole number of channels, 1 or more"),
    ],
)
def test_an_error_says_what_was_given_and_what_is_allowed(options, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        ResNet(classes=10, **options)


@pytest.mark.parametrize("depth", STAGE_BLOCKS)
def test_a_depth_counts_its_weight_layers(depth):
    modules = ResNet(depth, 10, width=2).named_modules()
    layers = [m for name, m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Linear) and "downsample" not in name]
    assert len(layers) == depth


@pytest.mark.parametrize("channels", [(3, 5), (8, 8)])
def test_a_convolution_of_a_2x2_map_is_the_padded_one(channels):
    convolution = Convolution(*channels, 3, padding=1, bias=False).double()
    x = torch.randn(4, channels[0], 2, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv2d(x, convolution.weight, padding=1)
    towards = torch.randn_like(expected)
    inputs = (x, convolution.weight)
    assert_close(convolution(x), expected)
    found, wanted = (torch.autograd.grad((y * towards).sum(), inputs) for y in (convolution(x), expected))
    assert_close(found, wanted)
