"""The report of training runs: one HTML page with curves, metrics and pictures.

This room imports `vnet_fast.evaluation`, `vnet_fast.prediction`, `vnet_fast.data`, `vnet_fast.run`, `vnet_fast.io` and
the small modules beside the rooms.
"""
