"""Checkpoints: the whole state of a run as one atomic unit, restored strictly onto any mesh.

`policy` says when to save and what to keep, `store` saves and restores, `fingerprint` tells whether
an array is bit for bit the same on any layout, `verify` reads a step without knowing the model.
This file imports the policy alone, so that listing checkpoints does not wait for JAX.
"""

from jscale.checkpoint.policy import Checkpoints

__all__ = ["Checkpoints"]
