"""Phantoms: synthetic volumes that resemble MR images of the prostate, for runs without data.

A textured gland of smooth random shape lies between bladder and rectum, in a body of soft tissue, with a bias field,
noise and the intensities of one of four scanners. The anatomy is not exact, but the task is realistic: the gland is
about as bright as its surroundings, so that no threshold finds it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vnet_fast.data.preparation import PreparedCase, prepare
from vnet_fast.progress import track

# for each scanner: exponent of its intensities, darkest and brightest raw value, noise as a share of the range
LAWS = ((1.0, 0, 500, 0.03), (0.7, -900, 9000, 0.05), (1.3, 0, 1800, 0.03), (1.0, 40, 250, 0.07))
# mean radius of the gland in mm, and its standard deviation as a share of the mean
GLAND_RADIUS, GLAND_VARIATION = 25.0, 0.12
# the phantoms of seed s have the seeds s * SEED_STEP + 0, 1, 2, …
SEED_STEP = 100_003


def phantom(
    seed: int, size: Sequence[int] = (64, 64, 32), spacing: Sequence[float] = (2.0, 2.0, 3.0)
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Makes a volume and its mask.

    Args:
        seed: the same seed gives the same volume.
        size: voxels, x y z.
        spacing: mm, x y z.

    Returns:
        image (z, y, x) float32 in a scanner's raw units, mask (z, y, x) uint8.
    """
    generator = np.random.default_rng((seed, 7919))
    z, y, x = _voxel_coordinates(size, spacing)
    centre = generator.normal(0, 6, 3)
    z, y, x = z - centre[2], y - centre[1], x - centre[0]
    body = np.sqrt((y / 85) ** 2 + (x / 120) ** 2)
    tissue, inside = _draw_tissue(generator, z, y, x, body)
    texture = np.where(inside, 0.1, 0.05) * _smooth_noise(generator, z.shape, 2)
    image = _soften(tissue + texture)
    image[body > 1] = 0.02
    return _scan(image, seed % len(LAWS), generator), inside.astype(np.uint8)


def _draw_tissue(
    generator: np.random.Generator, z: np.ndarray, y: np.ndarray, x: np.ndarray, body: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the organs.

    Args:
        generator: of their shapes.
        z: mm from the centre of the gland, (z, y, x); likewise y and x.
        y: see z.
        x: see z.
        body: distance from the body's axis as a share of the distance to the skin, (z, y, x).

    Returns:
        brightness of the tissue from 0 to 1, (z, y, x) float64; and the gland, (z, y, x) bool.
    """
    radius = GLAND_RADIUS * (1 + GLAND_VARIATION * generator.normal())
    axes = radius * np.array([0.8, 0.85, 1.15]) * (1 + 0.08 * generator.normal(size=3))
    lumps = 0.09 * _smooth_noise(generator, z.shape, 3)
    gland = _ellipsoid(z, y, x, axes) + lumps
    central = _ellipsoid(z, y + 5, x, axes) + lumps
    bladder = _ellipsoid(z - axes[0] - 16, y + 12, x, (20, 22, 30) * (1 + 0.15 * generator.normal(size=3)))
    rectum = np.sqrt(((y - axes[1] - 13) / 11) ** 2 + ((x + 4 * np.sin(z / 17)) / 13) ** 2)
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
    # the capsule is a thin dark rim around the gland
    tissue[(gland >= 1) & (gland < 1.12)] = 0.15
    return tissue, inside


def case_seed(seed: int, index: int) -> int:
    """Returns the seed of the phantom with an index, in the set of phantoms that `seed` gives."""
    return seed * SEED_STEP + index


def phantoms(seed: int, count: int, size: Sequence[int], spacing: Sequence[float]) -> list[PreparedCase]:
    """Makes a set of phantoms, as prepared cases in memory.

    Args:
        seed: of the set.
        count: number of phantoms.
        size: voxels, x y z.
        spacing: mm, x y z.

    Returns:
        list of PreparedCase.
    """

    def make(index: int) -> PreparedCase:
        image, mask = phantom(case_seed(seed, index), size, spacing)
        return prepare(f"phantom{index:02d}", image, mask, np.unique(mask).tolist())

    # threads are enough, because NumPy releases the interpreter's lock
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(track(pool.map(make, range(count)), "making phantoms", "phantoms", count))


def _voxel_coordinates(size: Sequence[int], spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns z, y, x of every voxel in mm from the volume's centre, each (z, y, x)."""
    x, y, z = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True))
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    return z, y, x


def _ellipsoid(z: np.ndarray, y: np.ndarray, x: np.ndarray, axes: ArrayLike) -> np.ndarray:
    """Returns the distance from the centre as a share of the distance to the surface, for semi-axes z y x in mm."""
    axes = np.asarray(axes)
    return np.sqrt((z / axes[0]) ** 2 + (y / axes[1]) ** 2 + (x / axes[2]) ** 2)


def _smooth_noise(generator: np.random.Generator, shape: tuple[int, ...], points: int) -> np.ndarray:
    """Returns noise of unit variance and low frequency, which varies over about 1/`points` of the volume."""
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


def _soften(image: np.ndarray) -> np.ndarray:
    """Smooths along every axis with the weights 1/4, 1/2, 1/4, which imitates the partial volume effect."""
    for axis in range(3):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(image.shape[axis]) + offset, axis) for offset in (0, 2))
        image = 0.5 * image + 0.25 * (before + after)
    return image


def _scan(image: np.ndarray, scanner: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Returns the raw intensities of a scanner, with its bias field, exponent, range and noise.

    Args:
        image: brightness of the tissue from 0 to 1, (z, y, x).
        scanner: index into LAWS.
        generator: of the bias field and the noise.
    """
    bias = np.exp((0.2 if scanner == 0 else 0.1) * _smooth_noise(generator, image.shape, 1))
    exponent, low, high, noise = LAWS[scanner]
    image = np.clip(image * bias, 0, None) ** exponent
    # magnitude images have Rician noise
    real = image + noise * generator.standard_normal(image.shape)
    image = np.hypot(real, noise * generator.standard_normal(image.shape))
    return (low + (high - low) * image).astype(np.float32)
