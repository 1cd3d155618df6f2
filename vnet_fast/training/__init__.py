"""Training: the trainer and its step, batches, validation, and cross-validation. May import prediction, data, run, nn
and ops.
"""
