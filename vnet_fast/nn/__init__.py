"""The network, its convolutions and the losses. May import ops."""
