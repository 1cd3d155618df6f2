"""The learning rate of each iteration."""

from vnet_fast.run.configuration import Config


def learning_rate(config: Config, iteration: int) -> float:
    """The learning rate of an iteration, counted from 0: divided by 10 every `lr_step` iterations."""
    return config.learning_rate * 0.1 ** (iteration // config.lr_step)
