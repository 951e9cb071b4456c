"""Grouped matmul compiled for chips that are not here: it compiles, and its memory stays small."""

import absent
import jax
import jax.numpy as jnp
import pytest

from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul.tiles import (
    TPU,
    TRITON,
    Extent,
    Sizes,
    Tiles,
    needs,
    room,
)
from jscale.pallas_kernels.grouped_matmul.visits import gathered, own, shared

SLOW = pytest.mark.slow
TPUS = {"v5e": "v5e-1", "v5p": "v5p-8", "v6e": "v6e-1", "tpu7x": "tpu7x-8"}
GPUS = {"h100": "h100:1", "b200": "b200:1"}
CHIPS = TPUS | GPUS
# JAX 0.12 means to leave Triton for Mosaic-GPU; until we have such a kernel, this one must compile.
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
# Rows given, rows taken, groups, their size, the result's, dtypes of the rows and of the matrices.
BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32
BASIC = (4096, None, 16, 512, 384, BFLOAT16, BFLOAT16)
SHAPES = {
    "basic": BASIC,
    "gathered": (1000, 5000, 7, 1000, 600, BFLOAT16, FLOAT32),
    "float32": (1001, None, 5, 200, 333, FLOAT32, FLOAT32),
    "small": (9, 20, 64, 24, 5, BFLOAT16, BFLOAT16),
    "many": (32768, 131072, 128, 2048, 768, BFLOAT16, BFLOAT16),
    "large": (32768, None, 8, 4096, 14336, BFLOAT16, BFLOAT16),
}


def compiled(chip, sizes, run=grouped_matmul, around=lambda one: one):
    """The program of the product and its gradients for one chip."""
    R, M, E, D, F, dtype, weights = sizes
    of = lambda d, *shape: jax.ShapeDtypeStruct(shape, d)
    rows = {} if M is None else {"rows": of(jnp.int32, M)}
    given = of(dtype, R, D), of(weights, E, D, F), of(jnp.int32, E), rows, of(dtype, M or R, F)

    def both(x, w, sizes, rows, back):
        out, pull = jax.vjp(around(lambda x, w: run(x, w, sizes, **rows)), x, w)
        return out, pull(back)

    return absent.compiled(CHIPS[chip], both, *given)


def temporaries(program):
    stats = program.memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


CORE = [("v6e", "basic"), ("h100", "basic")]


@LEAVING
@pytest.mark.parametrize(
    "chip, shape",
    [pytest.param(c, s, marks=() if (c, s) in CORE else SLOW) for c in CHIPS for s in SHAPES],
)
def test_compiles_where_it_is_chosen_and_holds_no_more_than_its_rows(chip, shape):
    """Beside results, a program holds the gradient of the rows that were taken and its sum.

    On TPUs also the rows themselves, and where XLA scatters by SparseCores the gradient in float32.
    """
    R, M, _, D, _, dtype, _ = SHAPES[shape]
    program = compiled(chip, SHAPES[shape])
    text = program.as_text() or ""
    assert all(f"grouped_matmul_{part}" in text for part in ("forward", "backward", "matrices"))
    taken = 0 if M is None else M * D * jnp.dtype(dtype).itemsize
    copies = 4 if chip in TPUS else 1
    room = 2**18 if chip in GPUS else 2**21  # tables, and on TPUs what the compiler aligns
    if M and chip in ("v5p", "tpu7x"):
        room = 2**26  # of SparseCores
    assert temporaries(program) <= 1.3 * (copies * taken + (R * D * 4 if M else 0)) + room


@LEAVING
def test_memory_does_not_grow_with_groups_as_that_of_ragged_dot_does():
    """On an H100 XLA's own copies the rows once for each group; here tables are all there is."""
    of = lambda E: (4096, None, E, 512, 384, BFLOAT16, BFLOAT16)
    ours = [temporaries(compiled("h100", of(E))) for E in (8, 64)]
    dense = [temporaries(compiled("h100", of(E), jax.lax.ragged_dot)) for E in (8, 64)]
    rows = 4096 * 512 * 2
    assert max(ours) < rows / 100
    assert dense[1] > 50 * rows and dense[1] > 6 * dense[0]


@SLOW
@pytest.mark.parametrize("chip", TPUS)
def test_memory_does_not_grow_with_groups_on_a_tpu(chip):
    of = lambda E: (4096, None, E, 512, 384, BFLOAT16, BFLOAT16)
    few, many = (temporaries(compiled(chip, of(E))) for E in (8, 64))
    assert many - few < 2**18


@pytest.mark.parametrize("groups", [1, 8, 128])
@pytest.mark.parametrize("table", [shared, gathered, own])
def test_work_does_not_grow_with_groups(groups, table):
    """What a kernel goes through are the rows' tiles, and at most one more for each group."""
    M, t = 4096, 128
    sizes = jax.ShapeDtypeStruct((groups,), jnp.int32)
    visits = jax.eval_shape(lambda sizes: table(sizes, M, t), sizes)
    assert visits.group.shape[0] <= M // t + groups


def stacked(one):
    """Of each half of the rows, in a loop of one step, computed again in the backward pass."""

    def run(x, w):
        each = jax.vmap(one, (0, None))(jnp.stack([x, 2 * x]), w)
        return each.sum(0).astype(x.dtype)

    step = jax.checkpoint(lambda carry, x, w: (carry, run(x, w)))
    return lambda x, w: jax.lax.scan(lambda c, x: step(c, x, w), 0, x[None])[1][0]


@SLOW
@LEAVING
@pytest.mark.parametrize("chip", ["v6e", "h100"])
def test_compiles_under_vmap_scan_and_remat(chip):
    text = compiled(chip, BASIC, around=stacked).as_text() or ""
    assert "grouped_matmul_matrices" in text


KINDS = ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"]
SIZES = [(1, 1, 1), (300, 64, 200), (4096, 4096, 14336), (131072, 7168, 2048)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 256])
@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tiles_fit_a_tpu(kind, groups, weights, dtype):
    for rows, inner, outer in SIZES:
        extent = Extent(rows, inner, outer, groups, dtype, weights)
        found = TPU.of(kind, extent)
        assert TPU.unfit(kind, extent, found) is None
        assert all(
            needs(part, extent, size) <= room(kind) for part, size in found._asdict().items()
        )


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L4"])
@pytest.mark.parametrize("groups", [1, 256])
@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tiles_fit_a_gpu(kind, groups, weights, dtype):
    for rows, inner, outer in SIZES:
        extent = Extent(rows, inner, outer, groups, dtype, weights)
        assert TRITON.unfit(kind, extent, TRITON.of(kind, extent)) is None


def test_tiles_follow_the_groups():
    """Rows by a quarter of a mean group; sizes that are divided are divided evenly."""
    kind, of = "TPU v6 lite", lambda E: Extent(16384, 768, 768, E, "bfloat16", "bfloat16")
    assert TPU.of(kind, of(1)).forward == Tiles(512, 768, 768)
    assert TPU.of(kind, of(64)).forward.rows == 128
    odd = Extent(100, 1100, 2500, 1, "bfloat16", "bfloat16")
    assert TPU.of(kind, odd).forward == Tiles(112, 1152, 896)
    assert TPU.of(kind, Extent(20, 768, 768, 1, "bfloat16", "bfloat16")).forward.rows == 32
    h100 = "NVIDIA H100 80GB HBM3"
    assert TRITON.of(h100, of(1)).forward[:3] == (128, 64, 256)
    assert TRITON.of(h100, of(512)).forward.rows == 32


def test_what_a_tuner_tries_fits():
    extent = Extent(16384, 4096, 2048, 8, "bfloat16", "bfloat16")
    for tunable, kind in ((TPU, "TPU v6 lite"), (TRITON, "NVIDIA H100 80GB HBM3")):
        now = tunable.of(kind, extent)
        for group in range(3):
            tried = tunable.candidates(group, kind, extent, now)
            assert len(tried) > 5 and now not in tried
    odd = Sizes(*[Tiles(100, 128, 128)] * 3)
    assert "multiples of 16" in (TPU.unfit("TPU v6 lite", extent, odd) or "")
