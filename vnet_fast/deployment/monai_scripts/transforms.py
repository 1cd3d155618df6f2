"""Transforms to the network's grid and back, and from regions to labels."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import InvertibleTransform, MapTransform
from torch import Tensor

# of positions, as shares of a voxel or of a volume
TOLERANCE = 1e-3


def interpolated(values: Tensor, positions: Sequence[Tensor], outside: float) -> Tensor:
    """Interpolates linearly along each axis.

    Args:
        values: (C, *spatial).
        positions: for each axis the voxel indices, with fractions, at which it is sampled.
        outside: the value beyond half a voxel from the border.
    """
    for axis, position in enumerate(positions, start=1):
        last = values.shape[axis] - 1
        is_outside = (position < -0.5) | (position >= last + 0.5)
        position = position.clamp(0, last)
        low = position.floor().long()
        share = (position - low).to(values.dtype).reshape(-1, *[1] * (values.ndim - 1 - axis))
        high = (low + 1).clamp(max=last)
        values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
        values = values.index_fill(axis, is_outside.nonzero().flatten(), outside)
    return values


class ToNetworkGridd(MapTransform, InvertibleTransform):
    """Samples an image on the network's grid, which is centred on it and has its axes; NaN outside of the image.

    Args:
        keys: of the images, (C, *spatial).
        spacing: of the grid along each axis, mm.
        size: of the grid, voxels.
        covering: whether the grid is enlarged to cover the whole image.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float], size: Sequence[int], covering: bool) -> None:
        super().__init__(keys)
        self.spacing, self.size, self.covering = list(spacing), list(size), covering

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with images on the network's grid."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            own = affine_to_spacing(image.affine).tolist()
            axes = [self._axis(*axis) for axis in zip(image.shape[1:], own, self.size, self.spacing, strict=True)]
            positions = [first + ratio * torch.arange(n, dtype=torch.float64) for first, ratio, n in axes]
            affine = torch.eye(4, dtype=torch.float64)
            for number, (first, ratio, _) in enumerate(axes):
                affine[number, number], affine[number, 3] = ratio, first
            values = interpolated(image.as_tensor().float(), positions, math.nan)
            sampled = MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
            extra = {"axes": [[first, ratio] for first, ratio, _ in axes]}
            size = tuple(image.shape[1:])
            self.push_transform(sampled, orig_size=size, affine=affine, extra_info=extra)  # type: ignore[no-untyped-call]
            found[key] = sampled
        return found

    def _axis(self, own_size: int, own_spacing: float, size: int, spacing: float) -> tuple[float, float, int]:
        """The first position, the distance of positions, and their number."""
        ratio = spacing / own_spacing
        share = min(1.0, size * ratio / own_size)
        if self.covering and share < 1 - TOLERANCE:
            size = math.ceil(size / share - TOLERANCE)
        first = (own_size - 1) / 2 - (size - 1) / 2 * ratio
        # where the spacings are equal, so are the voxels
        return (math.floor(first + TOLERANCE) if math.isclose(ratio, 1, rel_tol=1e-6) else first), ratio, size

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with what is on the network's grid on the image's own; 0 outside of the network's grid."""
        found = dict(data)
        for key in self.key_iterator(found):
            values = found[key]
            applied = self.pop_transform(values)
            axes, sizes = applied["extra_info"]["axes"], applied["orig_size"]
            positions = [
                (torch.arange(size, dtype=torch.float64, device=values.device) - float(first)) / float(ratio)
                for size, (first, ratio) in zip(sizes, axes, strict=True)
            ]
            affine = torch.eye(4, dtype=torch.float64)
            for number, (first, ratio) in enumerate(axes):
                affine[number, number], affine[number, 3] = float(ratio), float(first)
            sampled = interpolated(values.as_tensor().float(), positions, 0.0)
            restored = MetaTensor(sampled, meta=values.meta, applied_operations=values.applied_operations)
            restored.affine = values.affine.to(torch.float64) @ torch.linalg.inv(affine)
            found[key] = restored
        return found


class NormaliseVolumed(MapTransform):
    """Normalises each channel as in training; NaN, which is outside of the image, becomes the darkest intensity.

    Args:
        keys: of the images, (C, *spatial).
        channels: for each a dict with `percentiles` of its own foreground, or with the `scaling` of the training data:
            `low`, `high`, `mean` and `deviation`.
    """

    def __init__(self, keys: KeysCollection, channels: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with normalised images."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            if len(image) != len(self.channels):
                raise ValueError(f"the network needs {len(self.channels)} channels; got {len(image)}")
            arrays = [_normalised(x, c) for x, c in zip(image.as_tensor().numpy(), self.channels, strict=True)]
            image = image.clone()
            image.copy_(torch.from_numpy(np.stack(arrays)))
            found[key] = image
        return found


def _normalised(values: np.ndarray, channel: Mapping[str, Any]) -> np.ndarray:
    inside = values[~np.isnan(values)]
    if inside.size == 0 or inside.min() == inside.max():
        raise ValueError("all voxels of a volume have the same value on the network's grid")
    scaling = channel["scaling"]
    if scaling is not None:
        filled = np.clip(np.nan_to_num(values, nan=inside.min()), scaling["low"], scaling["high"])
        return np.asarray((filled - scaling["mean"]) / scaling["deviation"], np.float32)
    foreground = inside[inside > inside.min()]
    low, high = np.percentile(foreground, channel["percentiles"])
    if low == high:
        # the foreground has a single value, so the surround must count too
        foreground, low, high = inside, inside.min(), inside.max()
    clipped = np.clip(foreground, low, high).astype(np.float64)
    filled = np.clip(np.nan_to_num(values, nan=low), low, high)
    return np.asarray((filled - clipped.mean()) / clipped.std(), np.float32)


class RegionsToLabelsd(MapTransform):
    """The label of each voxel, of the regions that it is in.

    Args:
        keys: of (R, *spatial), 1 inside of a region and 0 elsewhere.
        labels: the label by the sum of 2 ^ i for the regions i.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int]) -> None:
        super().__init__(keys)
        self.labels = torch.tensor(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with (1, *spatial) labels."""
        found = dict(data)
        for key in self.key_iterator(found):
            inside = found[key]
            codes = sum((region > 0).long() << number for number, region in enumerate(inside.as_tensor()))
            values = self.labels.to(codes.device)[codes][None]
            found[key] = MetaTensor(values, meta=inside.meta, applied_operations=inside.applied_operations)
        return found
