"""The kernels of decode attention: interpreted in poisoned memory, and compiled for each chip."""

import re
from functools import partial
from typing import Any

import absent
import jax
import jax.numpy as jnp
import pytest
from decode_grid import ALL, SLOW, STORED, Case, agree, cases, over_layers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask
from jscale.pallas_kernels.decode_attention import Pages, Sequences, decode_attention
from jscale.pallas_kernels.decode_attention.choice import OPERATION, Call, preferred
from jscale.pallas_kernels.decode_attention.pages import LIMITS
from jscale.pallas_kernels.decode_attention.parts import Size
from jscale.pallas_kernels.decode_attention.tpu import VMEM, kernel, needs
from jscale.pallas_kernels.decode_attention.tpu import sizes as tpu_sizes
from jscale.pallas_kernels.decode_attention.triton import Tiles, triton
from jscale.pallas_kernels.decode_attention.triton import sizes as triton_sizes
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted

TILED = {"tpu": partial(kernel, size=Size(4, 2)), "triton": partial(triton, size=Tiles(2, 16, 2))}
UGLY = {
    "mixed": Case(scores=ALL, mask=Mask(window=7), stored="int8"),
    "odd": Case(heads=(6, 2), places=3, most=5, head=5, value=9, mask=Mask(False, chunk=5)),
    "low": Case(dtype="bfloat16", stored="float8_e4m3fn", scores=("sinks",)),
    "prefix": Case(((15, 1), (3, 6), (0, 0)), mask=Mask(window=3, prefix=2), scores=("slopes",)),
    "decode": Case(((5, 1), (0, 1), (12, 1)), gaps=(0, 0), heads=(3, 3)),
    "nobody": Case(((0, 0),) * 3, gaps=(4, 0)),
}
CORE = [("tpu", "mixed"), ("triton", "mixed")]


@pytest.mark.parametrize(
    "name, ugly",
    [pytest.param(n, u, marks=() if (n, u) in CORE else SLOW) for n in TILED for u in UGLY],
)
def test_kernels_equal_the_reference(name, ugly, capfd):
    with interpreted():
        agree(UGLY[ugly], TILED[name])
    assert "RACE" not in capfd.readouterr().out


@SLOW
@pytest.mark.parametrize("name", TILED)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(cases(stored=st.sampled_from(["float32", *STORED])))
def test_kernels_on_the_grid(name, case):
    with interpreted():
        agree(case, TILED[name])


@SLOW
@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("ugly", ["mixed", "decode"])
def test_kernels_in_the_sizes_that_are_chosen(name, ugly):
    with interpreted():
        agree(UGLY[ugly], OPERATION.implementations[name].run)


@pytest.mark.parametrize("inside", ["vmap", "scan"])
@pytest.mark.parametrize("name", [pytest.param("tpu", marks=SLOW), "triton"])
def test_kernels_over_layers(name, inside):
    with interpreted():
        over_layers(name, inside, Case(((5, 1), (0, 3)), gaps=(0, 0)))


def call(**options):
    sizes = 64, 64, 64, 16, 5000, 8, 2, 128, 128
    return Call(*sizes, "bfloat16", "bfloat16")._replace(**options)


V6E, H100 = Device("tpu", "TPU v6 lite"), Device("gpu", "NVIDIA H100")


def test_kernels_are_the_choice_on_their_devices():
    names = lambda device: [name for name, _ in preferred(call(), device)]
    assert names(V6E) == ["tpu", "xla"] and names(H100) == ["triton", "xla"]
    assert names(Device("cpu", "cpu")) == ["xla"]
    for name, device in (("tpu", V6E), ("triton", H100)):
        assert OPERATION.implementations[name].obstacle(call(), device) is None
        with pytest.raises(ConfigError, match=f"runs on {device.platform} only"):
            decode_attention(*Case().inputs(), implementation=name)


@pytest.mark.parametrize(
    "name, options, clause",
    [
        ("tpu", dict(dtype="float16"), "not in float16"),
        ("tpu", dict(sequences=4096), "scalar memory"),
        ("tpu", dict(places=65_536), "vector memory"),
        ("tpu", dict(tokens=0), "needs a token"),
        ("triton", dict(dtype="float64"), "not float64"),
        ("triton", dict(head=320), "heads of up to 256"),
        ("triton", dict(stored="int8", count=600_000), "below 2 GiB"),
        ("triton", dict(kv_heads=65_536), "65535 key/value heads"),
        ("triton", dict(pages=0), "needs a token"),
    ],
)
def test_what_a_kernel_refuses(name, options, clause):
    where = V6E if name == "tpu" else H100
    assert clause in (OPERATION.implementations[name].obstacle(call(**options), where) or "")


def test_sizes_fit():
    for head in (64, 128, 256):
        for group in (1, 3, 8):
            for stored in ("bfloat16", "int8", "float32"):
                for places in (16, 24, 128):
                    one = call(heads=8 * group, kv_heads=8, head=head, stored=stored, places=places)
                    one = one._replace(value=head, tokens=640)
                    size = tpu_sizes(one)
                    assert needs(size, one) <= VMEM and size.tokens * group % 8 == 0
    assert tpu_sizes(call()) == Size(2, 32)
    assert triton_sizes(call(tokens=8, sequences=8)) == Tiles(1, 64, 4)


# Tokens, sequences, pages of each, places, heads, key/value heads, head and value sizes.
DECODE, MIXED = (64, 64, 32, 128, 32, 8, 128, 128), (300, 20, 32, 16, 12, 4, 64, 64)
PROGRAMS = {
    "decode": (DECODE, "bfloat16", "bfloat16", CAUSAL, ()),
    "mixed": (MIXED, "bfloat16", "bfloat16", Mask(window=100), ("cap", "scale")),
    "int8": (DECODE, "bfloat16", "int8", CAUSAL, ("sinks", "slopes")),
    "small int8": (MIXED, "bfloat16", "int8", CAUSAL, ("sinks",)),
    "float8": (DECODE, "bfloat16", "float8_e4m3fn", Mask(chunk=64), ()),
    "float32": ((33, 4, 9, 24, 12, 12, 80, 40), "float32", "float32", FULL, ("sinks",)),
    "one": ((1, 1, 9, 8, 6, 2, 256, 256), "float32", "bfloat16", CAUSAL, ()),
}


def compiled(machine, name, around=lambda run: run):
    """The program of a call for a chip that is not here."""
    (T, S, M, C, N, K, H, V), dtype, stored, mask, scores = PROGRAMS[name]
    of: Any = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    scales = (of(jnp.float32, 99, K, C),) * 2 if stored in LIMITS else (None, None)
    pages = Pages(of(stored, 99, K, C, H), of(stored, 99, K, C, V), *scales)
    sequences = Sequences(of("int32", S + 1), of("int32", S), of("int32", S, M))
    more = Case(heads=(N, K), scores=scores).more()
    run = around(lambda q, p, s: decode_attention(q, p, s, mask, scores=more))
    return absent.compiled(machine, run, of(dtype, T, N, H), pages, sequences).as_text() or ""


CHIPS = ["v4-8", "v5e-1", "v5p-8", "v6e-1", "tpu7x-8"]
# JAX 0.12 means to leave Triton for Mosaic-GPU; until we have such a kernel, this one must compile.
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")


def test_it_compiles_for_a_tpu_that_is_not_here_and_is_chosen():
    text = compiled("v6e-1", "int8")
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    # The pages are used where they lie: nothing of their shape is made.
    assert not re.search(r"s8\[99,8,128,128\]\S* copy", text)


@LEAVING
def test_it_compiles_for_a_gpu_that_is_not_here_and_is_chosen():
    assert "xla.gpu.triton" in compiled("h100:1", "int8")


@SLOW
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_all_compile_for_tpus_that_are_not_here(chip, name):
    assert compiled(chip, name).count('custom_call_target="tpu_custom_call"') == 1


@SLOW
@LEAVING
@pytest.mark.parametrize("machine", ["h100:1", "b200:1"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_all_compile_for_gpus_that_are_not_here(machine, name):
    assert "xla.gpu.triton" in compiled(machine, name)


@LEAVING
@SLOW
@pytest.mark.parametrize("machine", ["v6e-1", "h100:1"])
def test_they_compile_over_layers(machine):
    layers = lambda run: (
        lambda q, pages, sequences: jax.vmap(lambda x: run(x, pages, sequences))(jnp.stack([q, q]))
    )
    assert "decode_attention" in compiled(machine, "decode", layers)
