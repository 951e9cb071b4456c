"""Linear cross-entropy compiled for chips that are not here: it compiles, and holds no logits."""

import absent
import jax
import jax.numpy as jnp
import pytest

from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.linear_cross_entropy import Expected, linear_cross_entropy
from jscale.pallas_kernels.linear_cross_entropy.choice import OPERATION, Call, chunk, preferred
from jscale.pallas_kernels.linear_cross_entropy.tiles import (
    TPU,
    TRITON,
    Extent,
    Sizes,
    Tiles,
    needs,
    room,
)

SLOW = pytest.mark.slow
TPUS = {"v5e": "v5e-1", "v5p": "v5p-8", "v6e": "v6e-1", "tpu7x": "tpu7x-8"}
GPUS = {"h100": "h100:1", "b200": "b200:1"}
CHIPS = TPUS | GPUS
# JAX 0.12 means to leave Triton for Mosaic-GPU; until we have such a kernel, this one must compile.
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
# Tokens, model size, vocabulary, dtypes of the hidden states and of the kernel, cap, smoothing.
BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32
SHAPES = {
    "basic": (2048, 256, 4096, BFLOAT16, BFLOAT16, None, 0.0),
    "odd": (1001, 100, 257, BFLOAT16, FLOAT32, 30.0, 0.1),
    "float32": (300, 200, 1000, FLOAT32, FLOAT32, None, 0.1),
    "one": (1, 64, 50, BFLOAT16, BFLOAT16, None, 0.0),
    "thin": (37, 5, 50, BFLOAT16, FLOAT32, None, 0.1),
    "large": (8192, 4096, 128_256, BFLOAT16, BFLOAT16, None, 0.0),
}


def compiled(chip, shape, name, forward=False, expected=False, around=lambda one: one):
    """The program of log-probabilities and normalizers, and of both's gradients."""
    M, D, V, dtype, weights, cap, smoothing = shape
    of = lambda d, *shape: jax.ShapeDtypeStruct(shape, d)
    numbers = of(FLOAT32, M)
    given = of(dtype, M, D), of(weights, D, V), of(jnp.int32, M), numbers, numbers

    def score(h, w, targets, weights):
        told = Expected(weights, 0.1) if expected else None
        return linear_cross_entropy(
            *(h, w, targets), cap=cap, smoothing=smoothing, expected=told, implementation=name
        )

    def both(h, w, targets, *by):
        if forward:
            return score(h, w, targets, by[0])
        out, pull = jax.vjp(around(lambda h, w: score(h, w, targets, by[0])), h, w)
        return out, pull(by)

    return absent.compiled(CHIPS[chip], both, *given)


def temporaries(program):
    stats = program.memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def kernel_of(chip):
    return "tpu" if chip in TPUS else "triton"


CORE = [("v6e", "one"), ("h100", "basic")]


@LEAVING
@pytest.mark.parametrize(
    "chip, shape",
    [pytest.param(c, s, marks=() if (c, s) in CORE else SLOW) for c in CHIPS for s in SHAPES],
)
def test_compiles_forward_and_backward(chip, shape):
    text = compiled(chip, SHAPES[shape], kernel_of(chip)).as_text() or ""
    assert all(f"linear_cross_entropy_{part}" in text for part in ("measure", "slopes"))


HELD = (16_384, 64, 8192, BFLOAT16, BFLOAT16, None, 0.0)
MOST = 16_384 * 8192 * 2  # bytes of its logits in bfloat16
WAYS = {"xla": ("xla", False), "expected": ("xla", True), "kernel": (None, False)}


HERE = [("h100", "expected"), ("h100", "kernel"), ("v6e", "kernel")]


@LEAVING
@pytest.mark.parametrize(
    "chip, way",
    [pytest.param(c, w, marks=() if (c, w) in HERE else SLOW) for c in CHIPS for w in WAYS],
)
def test_the_logits_are_never_held(chip, way):
    """Forward a kernel holds next to nothing; logits, or their gradient, are those of a chunk."""
    name, expected = WAYS[way]
    name = name or kernel_of(chip)
    M, D, V, *_ = HELD
    tokens = chunk(M, D, V)
    assert tokens * 8 <= M
    forward = temporaries(compiled(chip, HELD, name, True, expected))
    both = temporaries(compiled(chip, HELD, name, False, expected))
    assert forward < (MOST / 30 if way == "kernel" else MOST / 3)
    assert both < MOST / 2


@SLOW
@pytest.mark.parametrize("chip", ["h100", "v6e"])
def test_the_reference_holds_them(chip):
    """What the limits above are for: whole logits are more than twice as much."""
    assert temporaries(compiled(chip, HELD, "reference")) > MOST


def stacked(one):
    """Of each half, in a loop of one step, computed again in the backward pass."""

    def run(h, w):
        each = jax.vmap(one, (0, None))(jnp.stack([h, 2 * h]), w)
        return jax.tree.map(lambda x: x.sum(0), each)

    step = jax.checkpoint(lambda carry, h, w: (carry, run(h, w)))
    whole = lambda h, w: jax.lax.scan(lambda c, h: step(c, h, w), 0, h[None])[1]
    return lambda h, w: jax.tree.map(lambda x: x[0], whole(h, w))


@SLOW
@LEAVING
@pytest.mark.parametrize("chip", ["v6e", "h100"])
def test_compiles_under_vmap_scan_and_remat(chip):
    program = compiled(chip, SHAPES["basic"], kernel_of(chip), around=stacked)
    assert "linear_cross_entropy_slopes" in (program.as_text() or "")


def test_who_is_chosen_and_why():
    """A kernel where no gradient is expected, on a TPU; elsewhere XLA's products."""
    call = Call(8192, 4096, 128_256, "bfloat16", "bfloat16")
    on = lambda platform: Device(platform, platform)
    first = lambda call, platform: preferred(call, on(platform))[0]
    assert first(call, "tpu")[0] == "tpu"
    assert first(call._replace(expected=True), "tpu")[0] == "xla"
    assert first(call, "gpu") == (
        "xla",
        "2048 tokens at a time; the vendor's products gain more than the logits' way through memory"
        " costs",
    )
    assert first(call, "cpu")[0] == "xla"
    by = OPERATION.implementations
    assert by["triton"].obstacle(call, on("gpu")) is None
    assert "split over ('tensor',)" in (
        by["reference"].refuses(call._replace(split=("tensor",))) or ""
    )
    half = call._replace(dtype="float16")
    assert by["tpu"].refuses(half) and not by["triton"].refuses(half)
    assert str(call._replace(split=("tensor",), expected=True)) == (
        "8192 tokens of 4096 and a vocabulary of 128256 of each device, split over tensor,"
        " bfloat16, a gradient expected"
    )


def test_chunks_follow_the_sizes():
    assert chunk(8192, 4096, 128_256) == 2048  # half the model's size
    assert chunk(8192, 64, 128_256) == 512
    assert chunk(8192, 64, 8192) == 2048  # as many logits
    assert chunk(7, 64, 128_256) == 7


KINDS = ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"]
EXTENTS = [(1, 1, 1), (300, 100, 257), (8192, 4096, 128_256), (131_072, 16_384, 262_144)]


@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tiles_fit(dtype, weights):
    for sizes in EXTENTS:
        extent = Extent(*sizes, dtype, weights)
        for kind in KINDS:
            found = TPU.of(kind, extent)
            assert TPU.unfit(kind, extent, found) is None
            assert needs(extent, found.measure) <= room(kind)
        for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L4"):
            assert TRITON.unfit(kind, extent, TRITON.of(kind, extent)) is None


def test_what_a_tuner_tries_fits():
    extent = Extent(8192, 4096, 128_256, "bfloat16", "bfloat16")
    for tunable, kind in ((TPU, "TPU v6 lite"), (TRITON, "NVIDIA H100 80GB HBM3")):
        now = tunable.of(kind, extent)
        for group in range(2):
            tried = tunable.candidates(group, kind, extent, now)
            assert len(tried) > 5 and now not in tried
    assert TPU.of("TPU v6 lite", extent).measure == Tiles(1024, 1024, 1024)
    odd = Sizes(*[Tiles(100, 128, 128)] * 2)
    assert "multiples of 128" in (TPU.unfit("TPU v6 lite", extent, odd) or "")
