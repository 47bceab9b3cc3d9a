"""ResNets for small and large images: torchvision's 18, 34 and 50, the CIFAR depths 8, 14 and 20; CBAM if asked for.

A state dict of torchvision's resnet18, 34 or 50 loads strictly into ResNet(depth, 1000, stem="torchvision").

Sources: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385; torchvision/models/resnet.py,
which has a bottleneck's stride in its 3x3 convolution (ResNet "v1.5"). Where a shape changes the shortcut is a 1x1
convolution (option B of the paper), for the CIFAR depths too, where the paper's section 4.2 has one without parameters.
"""

import math
from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

STAGE_BLOCKS: dict[int, tuple[int, ...]] = {  # depth -> blocks in each stage
    8: (1, 1, 1),
    14: (2, 2, 2),
    20: (3, 3, 3),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
STEMS = ("cifar", "torchvision", "no_maxpool")


class CBAM(nn.Module):
    """Scale a map by a gate for each channel, then by a gate for each pixel: (B, C, H, W) -> (B, C, H, W).

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", arXiv 1807.06521, equations 2 and 3. Biases, which
    the equations do not show, are those of the authors' code (github.com/Jongchan/attention-module, MODELS/cbam.py):
    the MLP has them, the 7x7 convolution has a batch norm with momentum 0.01 instead. Of the choices with or without
    only this one adds 2,532,592 parameters to a ResNet-50: C²/8 + C/16 + C for the MLP and 98 + 2 for the pixels' gate
    in each of sixteen blocks. One difference: `ResNet.initialise` sets that batch norm's weight to 1, the authors to 0
    (at first every pixel's gate is 1/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        channel_gate: Tensor = torch.sigmoid(self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3))))
        x = x * channel_gate[:, :, None, None]
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


class Convolution(nn.Conv2d):
    """A convolution without bias; on a CPU, one of 3x3 over a map of 2x2 is taken as the matrix product that it is.

    There every output pixel sees every input pixel once, and 5/9 of a padded convolution's products are with zeros. A
    ResNet-18 on 32x32 images spends a third of its step in such convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        whole = self.kernel_size == (3, 3) and self.stride == (1, 1) and x.shape[-2:] == (2, 2)
        if not whole or x.device.type != "cpu":
            return super().forward(x)
        kernel = self.weight.permute(0, 2, 3, 1)  # (out, 3, 3, in)
        rows = [kernel[:, 1 - i : 3 - i, 1 - j : 3 - j].flatten(1) for i in (0, 1) for j in (0, 1)]
        out = F.linear(x.permute(0, 2, 3, 1).flatten(1), torch.cat(rows))
        return out.reshape(len(x), 2, 2, self.out_channels).permute(0, 3, 1, 2)


def _convolution(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return Convolution(fan_in, fan_out, size, stride=stride, padding=size // 2, bias=False)


def _shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    """The map itself where its shape stays, a 1x1 convolution and a batch norm where it changes."""
    if stride == 1 and fan_in == fan_out:
        return nn.Identity()
    return nn.Sequential(_convolution(fan_in, fan_out, 1, stride), nn.BatchNorm2d(fan_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, fan_in, H, W) -> (B, width, H / stride, W / stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, fan_in: int, width: int, stride: int, cbam: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(fan_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.cbam = CBAM(width) if cbam else nn.Identity()
        self.downsample = _shortcut(fan_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.cbam(self.bn2(self.conv2(out)))
        return F.relu(out + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, fan_in, H, W) -> (B, 4 width, H / stride, W / stride)."""

    expansion: ClassVar[int] = 4

    def __init__(self, fan_in: int, width: int, stride: int, cbam: bool) -> None:
        super().__init__()
        fan_out = self.expansion * width
        self.conv1 = _convolution(fan_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, fan_out, 1)
        self.bn3 = nn.BatchNorm2d(fan_out)
        self.cbam = CBAM(fan_out) if cbam else nn.Identity()
        self.downsample = _shortcut(fan_in, fan_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.cbam(self.bn3(self.conv3(out)))
        return F.relu(out + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes), and the maps of the stages asked for.

    depth: 18, 34 or 50 (four stages), or 8, 14 or 20 (three stages). stem: "cifar" (3x3, full size), "torchvision" (7x7
    with stride 2, then a max-pool with stride 2) or "no_maxpool" (7x7 with stride 2 alone). width: channels of the
    first stage before a bottleneck's expansion by 4, doubled from stage to stage; 64 for four stages, 16 for three if
    not given. cbam: a CBAM in every block, after its last batch norm, before the addition. channels: of the image.
    Until `initialise` is called the parameters are torch's defaults, drawn from its global generator.
    Raises ValueError for an unknown depth or stem and for a width below 1.
    """

    def __init__(
        self,
        depth: int,
        classes: int,
        *,
        stem: str = "cifar",
        width: int | None = None,
        cbam: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in STAGE_BLOCKS:
            raise ValueError(f"depth {depth!r}: allowed are {', '.join(map(str, sorted(STAGE_BLOCKS)))}")
        if stem not in STEMS:
            raise ValueError(f"stem {stem!r}: allowed are {', '.join(STEMS)}")
        blocks = STAGE_BLOCKS[depth]
        if width is None:
            width = 64 if len(blocks) == 4 else 16
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width {width!r}: allowed is a whole number of channels, 1 or more")

        size, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = _convolution(channels, width, size, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "torchvision" else nn.Identity()

        block = Bottleneck if depth == 50 else BasicBlock
        self.layer_names = tuple(f"layer{stage + 1}" for stage in range(len(blocks)))
        fan_in = width
        for stage, (name, count) in enumerate(zip(self.layer_names, blocks, strict=True)):
            stage_blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                stage_blocks.append(block(fan_in, width * 2**stage, stride, cbam))
                fan_in = block.expansion * width * 2**stage
            self.add_module(name, nn.Sequential(*stage_blocks))
        self.fc = nn.Linear(fan_in, classes)

    def forward(self, x: Tensor, layers: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """x: (B, channels, H, W) -> logits (B, classes) and the output (B, C, H, W) of each stage in `layers`, by name.

        The outputs are part of the graph, never detached. Raises ValueError for a name not in `layer_names`.
        """
        self._refuse_unknown(layers)
        x, features = self._stem(x), {}
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
            if name in layers:
                features[name] = x
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits, features

    def forward_features(self, x: Tensor, last: str) -> Tensor:
        """The output (B, C, H, W) of stage `last` alone, without computing what comes after it; errors as `forward`."""
        self._refuse_unknown([last])
        x = self._stem(x)
        for name in self.layer_names[: self.layer_names.index(last) + 1]:
            x = self.get_submodule(name)(x)
        return x

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return out

    def _refuse_unknown(self, layers: Collection[str]) -> None:
        unknown = sorted(set(layers) - set(self.layer_names))
        if unknown:
            raise ValueError(f"no layer {', '.join(unknown)}: this network has {', '.join(self.layer_names)}")

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight from one CPU generator; batch norms get weight 1, bias 0 and fresh running statistics.

        Convolutions: N(0, 2 / fan_out), as torchvision. Linear layers, those of CBAM too: U(-1/sqrt(fan_in),
        1/sqrt(fan_in)) for weight and bias, as `nn.Linear`.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                draws = torch.empty(module.weight.shape)
                nn.init.kaiming_normal_(draws, mode="fan_out", nonlinearity="relu", generator=generator)
                module.weight.copy_(draws)
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                for parameter in (module.weight, module.bias):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def feature_shapes(model: ResNet, channels: int, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) of every stage's output for an image (channels, height, width).

    No arithmetic: the network runs on copies without data (torch's meta device), so that `model` stays as it is.
    """
    no_data = {name: tensor.detach().to("meta") for name, tensor in model.state_dict().items()}
    images = torch.empty(2, channels, height, width, dtype=model.conv1.weight.dtype, device="meta")
    _, features = functional_call(model, no_data, (images, model.layer_names))
    return {name: (output.shape[1], output.shape[2], output.shape[3]) for name, output in features.items()}


def parameter_count(model: nn.Module) -> int:
    """How many numbers the optimiser can change: elements of all parameters; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
