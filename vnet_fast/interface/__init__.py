"""The interface for Python: training, segmentation and evaluation as in the commands, which are made of it."""
