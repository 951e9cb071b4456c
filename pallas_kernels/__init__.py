"""Fused operations, one folder each: a signature, a reference, a choice of implementation."""
