"""The operations that have kernels: for each its definition in plain PyTorch, its operator of `torch.library`, and
the choice between definition and kernel. Imports kernels, when they are first needed.
"""
