"""A released model, its weights on the devices of a mesh."""

from pathlib import Path
from typing import Any, NamedTuple

from jscale.data.tokenizers import Tokenizer, TokenizerFile
from jscale.errors import DataError
from jscale.formats import huggingface
from jscale.formats.files import Files
from jscale.formats.stream import Progress, quietly, stream
from jscale.mesh import Layout, MeshShape, Rules, choose, make_mesh
from jscale.models.model import Model

WANTED = ["*.json", "*.safetensors"]
# Weights that some releases hold once more, for other programs.
OTHERS = ["original/*", "metal/*", "onnx/*", "openvino/*", "consolidated*"]


class Pretrained(NamedTuple):
    """A model, its weights in their shards, their layout, and the tokenizer that came with them."""

    model: Model
    params: dict[str, Any]
    layout: Layout
    tokenizer: Tokenizer | None


def from_pretrained(
    release: str | Path,
    mesh: MeshShape | None = None,
    *,
    rules: Rules | None = None,
    compute: str = "float32",
    store: str = "float32",
    tokenizer: TokenizerFile | None = None,
    progress: Progress = quietly,
) -> Pretrained:
    """A release of `transformers`: a folder, or the name of one that its hub has.

    Weights go from the files to the devices' shards; the host holds a few arrays at once. Without a
    `mesh` they are split over all devices. `tokenizer` is for a release that has none, or one that
    does not say which token ends a text. No code of the release is run.

    Raises:
        DataError: there is no such release, or its files cannot be read.
        ConfigError: its architecture, or an option of it, is unknown; the mesh does not fit.
        CheckpointError: a weight is missing, left over, or of another shape.
    """
    folder, rules = folder_of(release), rules or Rules()
    model = Model(huggingface.config_of(folder), compute, store)
    shape = mesh or _split(model, rules)
    layout = Layout(make_mesh(shape), rules)
    where = layout.weight_shardings(model.shapes, model.axes)
    with Files(folder) as files:
        table = huggingface.table(model.config)
        params = stream(table, files, model.shapes, where, progress)
    if tokenizer is None and (folder / "tokenizer.json").exists():
        tokenizer = TokenizerFile(str(folder))
    return Pretrained(model, params, layout, tokenizer and tokenizer.load())


def _split(model: Model, rules: Rules) -> MeshShape:
    """The weights split over as many devices as their sizes allow."""
    from jscale.mesh.devices import devices

    count = len(devices())
    return choose(count, rules, model.shapes, model.axes, rows=count)[0]


def folder_of(release: str | Path) -> Path:
    """The folder of a release; one that the hub has is fetched, safetensors and JSON alone.

    Raises:
        DataError: it is no folder, and the hub cannot be asked or has no such release.
    """
    folder = Path(release).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or len(folder.parts) != 2 or str(release).startswith((".", "~")):
        raise DataError(f"there is no folder {folder}, and a release is named owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(release), allow_patterns=WANTED, ignore_patterns=OTHERS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"the release {release} cannot be had from the hub: {reason}") from error
