"""The programs of a pipeline folder, which need nothing of this package. In the folder they import each other by their
bare names.
"""
