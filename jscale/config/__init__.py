"""Recipes as values: load, override, explain, compare, write and restore frozen dataclasses.

Everything here works on any frozen dataclass of plain data; nothing knows what a training run is.
Import from the modules: `from jscale.config.load import load`.
"""
