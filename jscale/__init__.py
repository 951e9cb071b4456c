"""jscale: train large models on meshes of accelerators."""

__version__ = "0.1.0"
