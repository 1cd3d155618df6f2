"""The parts of a MONAI bundle that MONAI lacks: the network, its grid, its windows."""
