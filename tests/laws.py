"""What every architecture is put through: a new one joins `DECODERS` and inherits the laws."""

from jscale.models import Llama

DECODERS = {
    "llama": Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none"),
    "llama-tied": Llama(
        vocab=64, dim=32, layers=2, heads=4, kv_heads=4, hidden=64, head=16, tied=True
    ),
}
