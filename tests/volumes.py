"""Small volumes on disk."""

import numpy as np
import SimpleITK as sitk

from vnet_fast.io.grid import Grid, probability_on_grid


def make_image(array, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    """A SimpleITK image of a (z, y, x) array."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    image.SetDirection([float(d) for d in direction])
    return image


def probabilities_on_image(probabilities, grid, image):
    """The probabilities, (K, z, y, x) on a grid, on that of an image."""
    own = Grid.of(image)
    return np.stack([probability_on_grid(grid.image_from(p), own, label) for label, p in enumerate(probabilities)])


def write_case(folder, name, seed=0, size=(20, 18, 16), spacing=(1.2, 1.1, 2.0), suffix=".mhd", labels=1):
    """Writes a bright ball in noise, X and X_segmentation, and returns their paths."""
    generator = np.random.default_rng(seed)
    z, y, x = np.ogrid[: size[2], : size[1], : size[0]]
    centre = np.array(size) / 2 + generator.uniform(-1, 1, 3)
    distance = np.sqrt(((x - centre[0]) / 6) ** 2 + ((y - centre[1]) / 6) ** 2 + ((z - centre[2]) / 4) ** 2)
    mask = (distance < 1).astype(np.uint8)
    if labels == 2:
        mask[(mask > 0) & (np.broadcast_to(x, mask.shape) > centre[0])] = 2
    image = (100 + 80 * (mask > 0) + generator.normal(0, 10, mask.shape)).astype(np.int16)
    paths = folder / f"{name}{suffix}", folder / f"{name}_segmentation{suffix}"
    for array, path in zip((image, mask), paths, strict=True):
        sitk.WriteImage(make_image(array, spacing), str(path), useCompression=True)
    return paths
