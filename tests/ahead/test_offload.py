"""Inputs of blocks in the memory of the host: a device needs less, and nothing else changes."""

import pytest
from ahead.machines import need, recipe

from jscale.ahead import compile_for

LAYERS, ROW = 16, 2 * 2048 * 256 * 4  # bytes of a block's input on one of eight devices
SIZES = (f"model.layers={LAYERS}", "model.dim=256", "data.length=2048", "data.batch=16")


@pytest.mark.parametrize("machine", ["h100:8", pytest.param("v5e-8", marks=pytest.mark.slow)])
def test_a_device_is_spared_the_inputs_of_most_blocks(machine):
    need(machine)
    full, spared = (
        compile_for(recipe(*SIZES, f"model.remat={policy}"), machine).memory
        for policy in ("full", "offload")
    )
    assert full and spared and spared.arguments == full.arguments
    assert full.temporaries - spared.temporaries > (LAYERS - 4) * ROW
