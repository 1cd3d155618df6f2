"""Volumes on disk and their geometry: formats, headers, integrity checks and grids.

Of the project, this room imports only `vnet_fast.errors`.
"""
