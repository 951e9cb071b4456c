"""Linear cross-entropy: log-probabilities of tokens from hidden states, without all the logits."""

from jscale.pallas_kernels.linear_cross_entropy.choice import Expected as Expected
from jscale.pallas_kernels.linear_cross_entropy.choice import (
    linear_cross_entropy as linear_cross_entropy,
)
