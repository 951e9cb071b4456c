"""Throughput with a clock of our own, peaks from the table."""

import pytest

from jscale.metrics import (
    Rates,
    Throughput,
    find_peak,
    known_peak,
    measured_peak,
)


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_no_rates_before_the_first_step(clock):
    assert Throughput(1.0, 1.0, clock=clock).rates() is None


def test_tokens_seconds_and_mfu(clock):
    throughput = Throughput(flops_per_token=6e9, peak=8 * 1e15, clock=clock)
    for seconds, tokens in ((1.0, 100_000), (3.0, 500_000)):
        clock.sleep(seconds)
        throughput.step(tokens)
    rates = throughput.rates()
    assert rates is not None
    assert rates[:2] == (150_000.0, 2.0)
    assert rates.mfu == pytest.approx(150_000 * 6e9 / 8e15)
    assert rates.values(remaining=30)["eta_seconds"] == 60.0
    assert list(rates.values(1)) == ["tokens_per_second", "step_seconds", "mfu", "eta_seconds"]


def test_only_the_window_counts(clock):
    throughput = Throughput(1.0, 1.0, window=2, clock=clock)
    for seconds in (100.0, 1.0, 1.0):
        clock.sleep(seconds)
        throughput.step(10)
    assert throughput.rates() == Rates(10.0, 1.0, 10.0)


def test_pauses_belong_to_no_step(clock):
    throughput = Throughput(1.0, 1.0, clock=clock)
    with throughput.pause():  # compile
        clock.sleep(60.0)
    clock.sleep(1.0)
    throughput.step(10)
    clock.sleep(0.5)
    with throughput.pause():  # evaluate
        clock.sleep(20.0)
        with throughput.pause():  # and save
            clock.sleep(20.0)
        clock.sleep(20.0)
    clock.sleep(0.5)
    throughput.step(10)
    assert throughput.rates() == Rates(10.0, 1.0, 10.0)


def test_a_pause_that_fails_is_still_left_out(clock):
    throughput = Throughput(1.0, 1.0, clock=clock)
    with pytest.raises(KeyError), throughput.pause():
        clock.sleep(5.0)
        raise KeyError
    clock.sleep(1.0)
    throughput.step(10)
    assert throughput.rates() == Rates(10.0, 1.0, 10.0)


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5 lite", "int8", 394),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v5", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("TPU v6 lite", "float32", 918),
        ("TPU7x", "bfloat16", 2307 / 2),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "float16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H200", "float8_e4m3fn", 1979),
        ("NVIDIA H20", "bfloat16", 148),
        ("NVIDIA GH200 480GB", "bfloat16", 989),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA GB200", "bfloat16", 2500),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
    ],
)
def test_known_peaks(kind, dtype, tera):
    peak = known_peak(kind, dtype)
    assert peak is not None
    assert (peak.flops, peak.origin) == (pytest.approx(tera * 1e12), "known")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("cpu", "float32"), ("NVIDIA B2000", "bfloat16"), ("TPU v9", "bfloat16"), ("", "bfloat16")]
    + [("TPU v3", "int8"), ("NVIDIA H100", "float64")],
)
def test_unknown_peaks_are_none(kind, dtype):
    assert known_peak(kind, dtype) is None


def test_a_cpu_is_measured_and_shared_among_its_simulated_devices():
    ticks = iter(range(1000))  # a second passes at every look at the clock
    peak = measured_peak("float32", seconds=5.0, clock=lambda: float(next(ticks)))
    assert peak.origin == "measured"
    assert peak.flops == 2 * 512**3 / 1.0 / 8
    assert next(ticks) < 20
    found = find_peak("float32")
    assert found.origin == "measured" and 1e6 < found.flops < 1e14
