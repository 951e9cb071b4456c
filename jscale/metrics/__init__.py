"""What the loop shows and writes: progress, throughput, and files of numbers.

Nothing here knows about models or steps. Numbers arrive as plain mappings from name to float, made
by `Pending` from device arrays without stalling the step.
"""

from jscale.metrics.fetch import Pending
from jscale.metrics.jsonl import Jsonl, Line, read_lines
from jscale.metrics.logging import Logging
from jscale.metrics.peak import Peak, find_peak, known_peak, measured_peak
from jscale.metrics.progress import Progress
from jscale.metrics.tensorboard import TensorBoard
from jscale.metrics.throughput import Rates, Throughput
from jscale.metrics.weights_and_biases import WandB
from jscale.metrics.writers import Destination, Writer, Writers

__all__ = [
    "Destination",
    "Jsonl",
    "Line",
    "Logging",
    "Peak",
    "Pending",
    "Progress",
    "Rates",
    "TensorBoard",
    "Throughput",
    "WandB",
    "Writer",
    "Writers",
    "find_peak",
    "known_peak",
    "measured_peak",
    "read_lines",
]
