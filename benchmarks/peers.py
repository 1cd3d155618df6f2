"""V-Nets in plain PyTorch, which the project is compared with."""

import torch
from torch import nn

WIDTHS = (16, 32, 64, 128, 256)


def dice_loss(logits, target):
    """The paper's loss as one would write it: 1 - 2 Σ p g / (Σ p² + Σ g²) over the foreground.

    Args:
        logits: (N, 2, D, H, W).
        target: (N, 1, D, H, W) of 0 and 1.
    """
    foreground = torch.softmax(logits.float(), 1)[:, 1]
    reference = target[:, 0].float()
    voxels = (1, 2, 3)
    intersection = (foreground * reference).sum(voxels)
    sizes = foreground.square().sum(voxels) + reference.square().sum(voxels)
    return (1 - 2 * intersection / (sizes + 1e-5)).mean()


class PlainVNet(nn.Module):
    """The network of `vnet_fast.VNet` in plain PyTorch, of the topology of the paper's figure 2.

    Args:
        num_classes, base_channels, norm, levels, kernel_size: as of `vnet_fast.VNet`; `norm` may be None or `batch`.
    """

    def __init__(self, num_classes=2, base_channels=16, norm=None, levels=5, kernel_size=5):
        super().__init__()
        widths = [base_channels * 2**level for level in range(levels)]
        finest_last = widths[-2::-1]

        def stage(in_channels, channels, count):
            return nn.ModuleList(
                activated(
                    nn.Conv3d(
                        in_channels if i == 0 else channels, channels, kernel_size, padding=kernel_size // 2,
                        bias=norm is None,
                    ),
                    norm,
                )
                for i in range(count)
            )  # fmt: skip

        self.left = nn.ModuleList(
            stage(1 if level == 0 else width, width, count)
            for level, (width, count) in enumerate(zip(widths, (1, 2, 3, 3, 3), strict=False))
        )
        self.down = nn.ModuleList(
            activated(nn.Conv3d(width // 2, width, 2, 2, bias=norm is None), norm) for width in widths[1:]
        )
        # an up-convolution reads as many channels as the stage below it has
        self.up = nn.ModuleList(
            activated(nn.ConvTranspose3d(min(4 * skip, widths[-1]), skip, 2, 2, bias=norm is None), norm)
            for skip in finest_last
        )
        self.right = nn.ModuleList(
            stage(2 * skip, 2 * skip, count)
            for skip, count in zip(finest_last, (3, 3, 2, 1)[1 - levels :], strict=True)
        )
        self.head = nn.Conv3d(2 * base_channels, num_classes, 1)

    def forward(self, x):
        """Logits (N, num_classes, D, H, W) of an image (N, 1, D, H, W)."""
        x = residual_stage(self.left[0], x, x)
        skips = []
        for down, stage in zip(self.down, self.left[1:], strict=True):
            skips.append(x)
            x = down(x)
            x = residual_stage(stage, x, x)
        for up, stage in zip(self.up, self.right, strict=True):
            x = torch.cat([up(x), skips.pop()], 1)
            x = residual_stage(stage, x, x)
        return self.head(x)

    def take_weights(self, model):
        """Copies the weights of a `vnet_fast.VNet` of the same arguments, which are in the same order."""
        weights = model.state_dict().values()
        # PyTorch's batch norm counts batches too
        names = [name for name in self.state_dict() if not name.endswith("num_batches_tracked")]
        self.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)


def activated(convolution, norm):
    """A convolution, its batch norm if there is one, and its PReLU."""
    channels = convolution.out_channels
    norms = [] if norm is None else [nn.BatchNorm3d(channels)]
    return nn.Sequential(convolution, *norms, nn.PReLU(channels))


def residual_stage(layers, x, residual):
    """A stage of the plain network, with the residual added before the last activation."""
    for layer in layers[:-1]:
        x = layer(x)
    *last, activation = layers[-1]
    for module in last:
        x = module(x)
    return activation(x + residual)


class CommonVNet(nn.Module):
    """A V-Net as it is commonly implemented.

    It has batch normalisation, 1, 1, 2, 3, 2 and 2, 2, 1, 1 convolutions a stage, an activation before and another
    after the residual is added, and a 5x5x5 convolution in the head.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, WIDTHS[0], 5, padding=2), nn.BatchNorm3d(WIDTHS[0]))
        self.first_activation = nn.PReLU(WIDTHS[0])
        self.down = nn.ModuleList(normalised(nn.Conv3d(width, 2 * width, 2, 2)) for width in WIDTHS[:-1])
        self.left = nn.ModuleList(
            NormalisedStage(width, count) for width, count in zip(WIDTHS[1:], (1, 2, 3, 2), strict=True)
        )
        self.up = nn.ModuleList(
            normalised(nn.ConvTranspose3d(min(4 * skip, WIDTHS[-1]), skip, 2, 2)) for skip in WIDTHS[-2::-1]
        )
        self.right = nn.ModuleList(
            NormalisedStage(2 * skip, count) for skip, count in zip(WIDTHS[-2::-1], (2, 2, 1, 1), strict=True)
        )
        self.head = nn.Sequential(normalised(nn.Conv3d(2 * WIDTHS[0], 2, 5, padding=2)), nn.Conv3d(2, 2, 1))

    def forward(self, x):
        """Logits (N, 2, D, H, W) of an image (N, 1, D, H, W)."""
        x = self.first_activation(self.first(x) + x.repeat(1, WIDTHS[0], 1, 1, 1))
        skips = []
        for down, stage in zip(self.down, self.left, strict=True):
            skips.append(x)
            x = stage(down(x))
        for up, stage in zip(self.up, self.right, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


class NormalisedStage(nn.Module):
    """Convolutions with normalisation and activation, then the addition of the input."""

    def __init__(self, channels, convolutions):
        super().__init__()
        self.layers = nn.Sequential(
            *(normalised(nn.Conv3d(channels, channels, 5, padding=2)) for _ in range(convolutions))
        )
        self.activation = nn.PReLU(channels)

    def forward(self, x):
        """Features of the shape of x."""
        return self.activation(self.layers(x) + x)


def normalised(convolution):
    """A convolution, its batch normalisation and its PReLU."""
    channels = convolution.out_channels
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.PReLU(channels))
