"""Nothing of a failed load lives on, to complain later in the middle of something else."""

import gc
from types import CoroutineType

import pytest
from checkpoint.states import make_state, shapes_of

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.store import Store
from jscale.errors import CheckpointError


def of_orbax() -> list[str]:
    """The coroutines of Orbax that something still holds."""
    alive = [o for o in gc.get_objects() if isinstance(o, CoroutineType)]
    return [o.__name__ for o in alive if "orbax" in o.cr_code.co_filename]


# Where PyTorch is installed and loaded, looking at all that is alive touches a name it gives up.
@pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op:FutureWarning")
def test_nothing_of_a_failed_load_outlives_it(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        store.save(1, make_state())
        store.wait()
        for path in (tmp_path / "1" / "state").rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        gc.collect()
        gc.disable()  # that it is collected at once, not by chance
        try:
            with pytest.raises(CheckpointError, match="step 1 of .* is damaged"):
                store.restore(shapes_of(make_state()), step=1)
            assert of_orbax() == []
        finally:
            gc.enable()
