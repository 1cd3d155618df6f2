"""Trained networks for use without this package: files of other programs, a pipeline folder, a MONAI bundle."""
