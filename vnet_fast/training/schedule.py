"""The learning rate of each iteration."""

import math

from vnet_fast.run.configuration import Config

# of the polynomial, as in nnU-Net
POWER = 0.9


def learning_rate(config: Config, iteration: int) -> float:
    """The learning rate of an iteration, counted from 0.

    It rises linearly in the first `warmup` iterations, of which the last has the full rate. Then `step` divides it by
    10 every `lr_step` iterations of the run. `poly` and `cosine` multiply it by (1 - t)^0.9 or (1 + cos πt) / 2, where
    t is the share of the iterations after the warm-up that is done.
    """
    if iteration < config.warmup:
        return config.learning_rate * (iteration + 1) / config.warmup
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** (iteration // config.lr_step)
    done = (iteration - config.warmup) / max(1, config.iterations - config.warmup)
    if config.schedule == "poly":
        return config.learning_rate * max(0.0, 1 - done) ** POWER
    return config.learning_rate * (1 + math.cos(math.pi * min(1.0, done))) / 2
