"""The folder of a training run: its configuration, checkpoints, log and lock. May import nn."""
