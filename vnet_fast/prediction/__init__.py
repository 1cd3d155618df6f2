"""Prediction: probabilities of a volume, in windows, as masks on its own grid; and a run's held-out cases. May import
data, run, nn and io.
"""
