"""The learning rate of each iteration."""


def learning_rate(config, iteration):
    """The learning rate of an iteration, from 0."""
    return config.learning_rate * 0.1 ** (iteration // config.lr_step)
