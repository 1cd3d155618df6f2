"""Evaluation: metrics of predicted masks, the challenge's score, comparisons, and their tables and figures.

This room imports `vnet_fast.data`, `vnet_fast.io` and the small modules beside the rooms, but neither `vnet_fast.nn`
nor `vnet_fast.run`.
"""
