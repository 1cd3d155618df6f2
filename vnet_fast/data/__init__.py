"""Data sets: cases, folds, labels, prepared volumes and their cache, phantoms.

This room imports `vnet_fast.io` and the small modules beside the rooms, but neither `vnet_fast.nn` nor
`vnet_fast.run`.
"""
