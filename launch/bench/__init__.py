"""Measures kernels on the device at hand, against all else that computes the same."""
