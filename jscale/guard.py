"""What protects a run from a bad step: skipping, spikes, and the scale of a float16 loss.

All of it is decided on the device, as part of the step, so that watching costs no time; the host
reads the counts with the other metrics.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError

DOUBLE_AFTER = 2_000  # good steps before the loss scale is doubled, as in arXiv 1710.03740


@dataclass(frozen=True)
class Spike:
    """A loss more than `sigmas` deviations above its mean over about `window` steps.

    Spikes are counted and shown; with `skip` their update is left out too.
    """

    sigmas: float = 6.0  # deviations above the mean from which a loss is a spike
    window: int = 128  # steps that mean and deviation look back
    skip: bool = False  # whether a spike's update is left out

    def __post_init__(self) -> None:
        if self.sigmas <= 0 or self.window < 2:
            raise ConfigError(f"a spike needs sigmas > 0 and a window of at least 2, not {self}")


@dataclass(frozen=True)
class Guard:
    """A step whose loss or gradient is not finite changes nothing but the counts; after
    `abort_after` such steps in a row the run stops. `spike=None` does not look for spikes."""

    abort_after: int = 10  # steps in a row that are not finite, which end the run
    spike: Spike | None = Spike()  # what counts as a spike; None: nothing does
    idle: tuple[str, ...] = ()  # patterns of the names of weights that may have no gradient

    def __post_init__(self) -> None:
        if self.abort_after < 1:
            raise ConfigError(f"guard.abort_after must be at least 1, not {self.abort_after}")


class Watch(NamedTuple):
    """What the guard remembers from step to step."""

    skipped: Int[Array, ""]  # steps left out so far
    streak: Int[Array, ""]  # steps in a row, up to now, that were not finite
    spikes: Int[Array, ""]
    replays: Int[Array, ""]  # steps done again because tokens found no room
    seen: Int[Array, ""]  # losses behind the mean and the variance
    mean: Float[Array, ""]
    variance: Float[Array, ""]
    scale: Float[Array, ""]  # of the loss; 1 unless computing in float16
    good: Int[Array, ""]  # finite steps since the scale changed

    @staticmethod
    def start(scaled: bool) -> "Watch":
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        scale = jnp.full((), 2.0**15 if scaled else 1.0, jnp.float32)
        return Watch(none, none, none, none, none, zero, zero, scale, none)


def judge(
    guard: Guard, watch: Watch, loss: Float[Array, ""], finite: Bool[Array, ""], scaled: bool
) -> tuple[Bool[Array, ""], Watch]:
    """Whether to apply the step, and what to remember of it."""
    spike = finite & is_spike(guard.spike, watch, loss)
    skip = ~finite | (spike & bool(guard.spike and guard.spike.skip))
    # A spike counts as no more than the limit: one hardly moves the mean, a lasting change does.
    mean, variance = follow(guard.spike, watch, jnp.minimum(loss, limit(guard.spike, watch)))
    watch = watch._replace(
        skipped=watch.skipped + skip,
        streak=jnp.where(finite, 0, watch.streak + 1),
        spikes=watch.spikes + spike,
        seen=watch.seen + finite,
        mean=jnp.where(finite, mean, watch.mean),
        variance=jnp.where(finite, variance, watch.variance),
    )
    return ~skip, rescale(watch, finite) if scaled else watch


def is_spike(spike: Spike | None, watch: Watch, loss: Float[Array, ""]) -> Bool[Array, ""]:
    return loss > limit(spike, watch)


def limit(spike: Spike | None, watch: Watch) -> Float[Array, ""]:
    """The loss above which a step is a spike; infinite while it is too early to say."""
    if spike is None:
        return jnp.full((), jnp.inf)
    above = watch.mean + spike.sigmas * jnp.sqrt(watch.variance)
    return jnp.where(watch.seen >= spike.window, above, jnp.inf)


def follow(
    spike: Spike | None, watch: Watch, loss: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The running mean and variance of the loss with one more value."""
    share = jnp.maximum(1.0 / (watch.seen + 1.0), 1.0 / (spike.window if spike else 1))
    off = loss - watch.mean
    return watch.mean + share * off, (1 - share) * (watch.variance + share * off * off)


def rescale(watch: Watch, finite: Bool[Array, ""]) -> Watch:
    """Halve the loss scale after an overflow, double it after many good steps."""
    double = finite & (watch.good + 1 >= DOUBLE_AFTER)
    scale = jnp.where(finite, jnp.where(double, 2.0, 1.0), 0.5) * watch.scale
    return watch._replace(
        scale=jnp.clip(scale, 1.0, 2.0**24), good=jnp.where(finite & ~double, watch.good + 1, 0)
    )
