"""Synthetic prostate-like MR volumes: what a first run trains on when no data is given.

A textured gland of smooth random shape between bladder and rectum, in a body of soft tissue, with a
bias field, noise and one of four scanners' laws of intensity. Nothing is anatomically exact; the
task is what matters: the gland's brightness overlaps its surroundings', and no threshold finds it.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vnet_fast.data.preparation import prepare

# of each scanner: exponent of its law, darkest and brightest raw value, noise as a share of the range
LAWS = ((1.0, 0, 500, 0.03), (0.7, -900, 9000, 0.05), (1.3, 0, 1800, 0.03), (1.0, 40, 250, 0.07))
# mean radius of the gland in mm, and how much single glands vary
GLAND_RADIUS, GLAND_VARIATION = 25.0, 0.12


def phantom(seed, size=(64, 64, 32), spacing=(2.0, 2.0, 3.0)):
    """A volume and its mask.

    Args:
        seed: the same seed gives the same volume.
        size: voxels, x y z.
        spacing: mm, x y z.

    Returns:
        image (z, y, x) float32 in a scanner's raw units, mask (z, y, x) uint8.
    """
    generator = np.random.default_rng((seed, 7919))
    z, y, x = _coordinates(size, spacing)
    centre = generator.normal(0, 6, 3)
    z, y, x = z - centre[2], y - centre[1], x - centre[0]

    radius = GLAND_RADIUS * (1 + GLAND_VARIATION * generator.normal())
    axes = radius * np.array([0.8, 0.85, 1.15]) * (1 + 0.08 * generator.normal(size=3))
    lumps = 0.09 * _smooth_noise(generator, z.shape, 3)
    gland = np.sqrt((z / axes[0]) ** 2 + (y / axes[1]) ** 2 + (x / axes[2]) ** 2) + lumps
    central = np.sqrt((z / axes[0]) ** 2 + ((y + 5) / axes[1]) ** 2 + (x / axes[2]) ** 2) + lumps
    bladder = _ellipsoid(z - axes[0] - 16, y + 12, x, (20, 22, 30) * (1 + 0.15 * generator.normal(size=3)))
    rectum = np.sqrt(((y - axes[1] - 13) / 11) ** 2 + ((x + 4 * np.sin(z / 17)) / 13) ** 2)
    body = np.sqrt((y / 85) ** 2 + (x / 120) ** 2)
    muscle = _ellipsoid(z, y + 5, np.abs(x) - 48, (60, 30, 14))

    tissue = np.full(z.shape, 0.4)
    tissue[body > 0.8] = 0.85
    tissue[muscle < 1] = 0.2
    tissue[bladder < 1] = 0.95
    tissue[rectum < 1] = 0.3
    tissue[rectum < 0.7] = 0.08 if generator.random() < 0.5 else 0.6
    inside = gland < 1
    tissue[inside] = 0.75
    tissue[inside & (central < 0.75)] = 0.58
    # the capsule: a thin dark rim around the gland
    tissue[(gland >= 1) & (gland < 1.12)] = 0.15
    texture = np.where(inside, 0.1, 0.05) * _smooth_noise(generator, z.shape, 2)
    image = _soften(tissue + texture)
    image[body > 1] = 0.02
    return _scan(image, seed % len(LAWS), generator), inside.astype(np.uint8)


def case_seed(seed, index):
    """The seed of one phantom of the set that another seed makes."""
    return seed * 100_003 + index


def phantoms(seed, count, size, spacing):
    """Prepared cases made in memory.

    Args:
        seed: of the whole set.
        count: how many.
        size: voxels, x y z.
        spacing: mm, x y z.

    Returns:
        list of `cache.PreparedCase`.
    """

    def make(index):
        image, mask = phantom(case_seed(seed, index), size, spacing)
        return prepare(f"phantom{index:02d}", image, mask, np.unique(mask).tolist())

    # NumPy's transforms, sorts and arithmetic let other threads run
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(make, range(count)))


def _coordinates(size, spacing):
    """z, y, x of every voxel in mm from the centre, each (z, y, x)."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size[::-1], spacing[::-1], strict=True)]
    return np.meshgrid(*axes, indexing="ij")


def _ellipsoid(z, y, x, axes):
    return np.sqrt((z / axes[0]) ** 2 + (y / axes[1]) ** 2 + (x / axes[2]) ** 2)


def _smooth_noise(generator, shape, points):
    """Noise of unit variance that varies over about 1/`points` of the volume, by its lowest
    frequencies.
    """
    spectrum = np.fft.rfftn(generator.standard_normal(shape))
    frequencies = np.meshgrid(
        np.fft.fftfreq(shape[0]) * shape[0],
        np.fft.fftfreq(shape[1]) * shape[1],
        np.fft.rfftfreq(shape[2]) * shape[2],
        indexing="ij",
    )
    spectrum *= np.exp(-sum(f**2 for f in frequencies) / (2 * points**2))
    noise = np.fft.irfftn(spectrum, shape, axes=(0, 1, 2))
    return (noise - noise.mean()) / noise.std()


def _soften(image):
    """Partial volume: each voxel a quarter of its two neighbours along every axis."""
    for axis in range(3):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(image.shape[axis]) + offset, axis) for offset in (0, 2))
        image = 0.5 * image + 0.25 * (before + after)
    return image


def _scan(image, scanner, generator):
    """Raw intensities of one of four scanners: its bias field, law, range and noise."""
    bias = np.exp((0.2 if scanner == 0 else 0.1) * _smooth_noise(generator, image.shape, 1))
    exponent, low, high, noise = LAWS[scanner]
    image = np.clip(image * bias, 0, None) ** exponent
    # magnitude images have Rician noise
    real = image + noise * generator.standard_normal(image.shape)
    image = np.hypot(real, noise * generator.standard_normal(image.shape))
    return (low + (high - low) * image).astype(np.float32)
