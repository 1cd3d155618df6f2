"""Other intensities: noise, brightness, contrast and gamma, from a few numbers for each volume."""

import math

import numpy as np
import torch
from torch import Tensor

from vnet_fast.ops.transform_rows import BRIGHTNESS, CONTRAST, GAMMA, INVERTED, NOISE, SEED

# of Philox 4x32: rounds, multipliers, and what is added to the key after each round
ROUNDS, MULTIPLIERS, KEY_STEPS = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
LOW_BITS = 0xFFFFFFFF
# counters at a time, whose words stay in a core's cache, and which PyTorch does not share out among threads
CHUNK = 2**15


def change_intensities(image: Tensor, low: Tensor, high: Tensor, row: np.ndarray) -> Tensor:
    """Noise, brightness, contrast and gamma, in this order, which is nnU-Net's: noise comes from the scanner, and so
    before everything that stands for another scanner or another display.

    No pass over the volume is needed. Intensities have mean 0 over the foreground (`data.intensity.normalise`), which
    is the mean that contrast keeps, and the ends of the volume's range are those of its table. The range that contrast
    keeps, and that gamma bends, is without noise, so that both clip noise that leaves it.

        brightness  v b
        contrast    v c, clipped to the range before it
        gamma       l + (h - l) ((v - l) / (h - l))^γ over the range l, h at this point; inverted, it bends from h

    Args:
        image: (D, H, W) float32.
        low, high: scalars, the first and the last value of the table that the volume has.
        row: of `transforms`; BRIGHTNESS and GAMMA are above 0, CONTRAST too.

    Source:
        Isensee et al. 2021 (nnU-Net), supplement; its deviations here: contrast keeps the foreground's mean instead of
        the mean of the patch, and gamma does not restore mean and variance.
    """
    deviation, brightness, contrast, gamma = (float(row[column]) for column in (NOISE, BRIGHTNESS, CONTRAST, GAMMA))
    if deviation > 0:
        seed = int(row[SEED]) + (int(row[SEED + 1]) << 16)
        image = image + deviation * standard_normal(seed, image.numel(), image.device).view(image.shape)
    if brightness != 1:
        image = image * brightness
    if contrast != 1:
        image = torch.clamp(image * contrast, brightness * low, brightness * high)
    if gamma != 1:
        scale = brightness * min(contrast, 1.0)
        low, spread = scale * low, (scale * (high - low)).clamp(min=torch.finfo(torch.float32).tiny)
        share = ((image - low) / spread).clamp(0, 1)
        share = 1 - (1 - share) ** gamma if row[INVERTED] else share**gamma
        image = low + spread * share
    return image


def standard_normal(seed: int, count: int, device: torch.device | None = None) -> Tensor:
    """Standard normal numbers that depend on the seed and their index alone, the same on every device.

    Args:
        seed: 32 bits.
        count: how many.
        device: of the result.

    Returns:
        (count,) float32.

    Source:
        Salmon et al. 2011 (Philox 4x32 with 10 rounds), Box and Muller 1958. Four numbers have one counter.
    """
    blocks = -(-count // 4)
    chunks = [torch.arange(i, min(i + CHUNK, blocks), device=device) for i in range(0, blocks, CHUNK)]
    return torch.cat([_block_numbers(seed, counter) for counter in chunks])[:count]


def _block_numbers(seed: int, counter: Tensor) -> Tensor:
    """The four numbers of each counter, (4 n,) float32 of (n,) int64."""
    words = [counter & LOW_BITS, *(torch.zeros_like(counter) for _ in range(3))]
    keys = [seed, 0]
    for _ in range(ROUNDS):
        # of two factors of 32 bits; the sign bit is one of the upper 32
        first, second = (word * multiplier for word, multiplier in zip(words[::2], MULTIPLIERS, strict=True))
        words = [
            ((second >> 32) & LOW_BITS) ^ words[1] ^ keys[0],
            second & LOW_BITS,
            ((first >> 32) & LOW_BITS) ^ words[3] ^ keys[1],
            first & LOW_BITS,
        ]
        keys = [(key + step) & LOW_BITS for key, step in zip(keys, KEY_STEPS, strict=True)]
    numbers = []
    for radius, angle in (words[:2], words[2:]):
        # the upper 24 bits, which float32 holds exactly
        length = (-2 * torch.log(((radius >> 8) + 1).float() * 2.0**-24)).sqrt_()
        turn = (angle >> 8).float() * (2 * math.pi * 2.0**-24)
        numbers += [length * turn.cos(), length * turn.sin()]
    return torch.stack(numbers, dim=1).flatten()
