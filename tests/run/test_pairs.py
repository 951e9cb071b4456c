"""Encoder-decoders and encoders are trained, resumed, measured and asked like any other network."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run.tiny import prints, tiny, train, written

from jscale.ahead import compile_for
from jscale.data import Bytes, PairData, Pairs
from jscale.errors import ConfigError
from jscale.evaluation import GreedyMatch
from jscale.explain import explain
from jscale.generate import Sampling
from jscale.given_source import GivenSource
from jscale.launch.cli import main
from jscale.losses import NextToken
from jscale.masked_tokens import MaskedTokens
from jscale.mesh import MeshShape
from jscale.models import EncoderDecoder, TransformerEncoder
from jscale.models.feed import MLP
from jscale.models.positions import RelativeBias
from jscale.models.residual import PreNorm
from jscale.optim import AdamW, Constant
from jscale.prepare import mesh_of, task_of
from jscale.recipe import Recipe, Samples
from jscale.run.restored import open_run
from jscale.run.trainer import Trainer
from jscale.score import score

LIKELIEST = Sampling(temperature=0.0)
MODEL = EncoderDecoder(
    vocab=260,
    dim=32,
    layers=(1, 1),
    heads=4,
    feed=MLP(64),
    residual=PreNorm(),
    positions=(RelativeBias(8, 16),),
    remat="none",
)


def words() -> tuple[tuple[str, str], ...]:
    draw = random.Random(0)
    made = ("".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(400))
    return tuple((word, word[::-1]) for word in dict.fromkeys(made))


def backwards(folder: Path, **changes) -> Recipe:
    recipe = replace(
        tiny(folder),
        model=MODEL,
        data=PairData(
            Pairs(words()), Bytes(), 24, batch=8, heldout=0.1, cache=str(folder / "cache")
        ),
        loss=GivenSource(),
        mesh=MeshShape(),
        optimizer=AdamW(peak=1e-2, schedule=Constant(warmup=2)),
        samples=Samples(("abc", "hgfe"), every=10, length=8, sampling=LIKELIEST),
    )
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of ten steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("pairs")
    train(backwards(folder, steps=10), folder / "run")
    return folder


def test_a_run_on_pairs_goes_on_with_the_bits_of_one_that_was_never_stopped(asked, tmp_path):
    shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
    for folder in ("run", "whole"):
        train(backwards(tmp_path, steps=15), tmp_path / folder)
    assert prints(tmp_path / "run", 15) == prints(tmp_path / "whole", 15)
    ours, whole = (written(tmp_path / name, "train/loss") for name in ("run", "whole"))
    assert ours == whole and whole[-1][1] < whole[0][1]
    heldout = json.loads((tmp_path / "run/summary.json").read_text())["values"]
    assert heldout["heldout/perplexity"] == pytest.approx(np.exp(heldout["heldout/nll"]))
    assert heldout["heldout/bits_per_byte"] > 0
    rows: Any = backwards(tmp_path).data.open(0).heldout
    with Trainer(backwards(tmp_path, steps=15), tmp_path / "run") as trainer:
        assert trainer.evaluate()["tokens"] == rows.tokens  # of targets


def test_sources_go_in_and_targets_come_out_of_a_folder(asked, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    prompts = ["a", "abcdefgh" * 3, "hgfe"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    ask = ["generate", str(asked / "run"), "--length", "8"]
    assert main([*ask, "--temperature", "0", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    with Trainer(backwards(asked, steps=10), asked / "run") as trainer:
        assert trainer.generate(prompts, 8, LIKELIEST) == out
        assert [trainer.generate([p], 8, LIKELIEST)[0] for p in prompts] == out
    assert not any(text.startswith(prompt) for text, prompt in zip(out, prompts, strict=True))
    samples = (asked / "run/samples.txt").read_text()
    assert "--- step 10: 'hgfe'\n" + out[2] + "\n" in samples
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*ask, "--seed", seed, *words]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_every_mesh_answers_the_same(asked, tmp_path):
    shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
    prompts, found = ["a", "abcdefgh" * 3, "hgfe"], []
    for mesh in (MeshShape(fsdp=8), MeshShape(data=2, tensor=2), MeshShape()):
        with Trainer(backwards(tmp_path, steps=10, mesh=mesh), tmp_path / "run") as trainer:
            found.append(trainer.generate(prompts, 8, LIKELIEST))
    assert found[0] == found[1] == found[2]


def test_pairs_are_planned_and_compiled_before_anything_is_read(tmp_path):
    recipe = backwards(tmp_path, mesh=MeshShape(data=2, fsdp=2, tensor=2))
    assert "decoder/blocks/block/cross/q" in {row.name for row in explain(recipe).rows}
    report = compile_for(replace(recipe, mesh="auto"))
    assert report.refusal is None and report.memory is not None


def masked(folder: Path, **changes) -> Recipe:
    model = TransformerEncoder(vocab=260, dim=32, layers=1, heads=4, feed=MLP(64), remat="none")
    recipe = tiny(folder, model=model, samples=None, steps=4, mesh=MeshShape())
    return replace(recipe, **{"loss": MaskedTokens(259), **changes})


def test_an_encoder_is_trained_and_measured_on_text_and_writes_none(tmp_path, capsys):
    with Trainer(masked(tmp_path), tmp_path / "run") as trainer:
        values = trainer.fit()["values"]
        assert values["heldout/perplexity"] > 1 and trainer.evaluate(1)["tokens"] > 0
        assert "heldout/bits_per_byte" not in values  # the tokens it guesses are not all tokens
    assert main(["generate", str(tmp_path / "run"), "--prompt", "def "]) == 64
    assert "TransformerEncoder writes no text: that needs a decoder" in capsys.readouterr().err
    run = open_run(tmp_path / "run")
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(ConfigError, match="TransformerEncoder gives no token a probability"):
        score(run.model, run.params, [[1, 2, 3]])
    with pytest.raises(ConfigError, match="TransformerEncoder writes no text"):
        run.examine(GreedyMatch(str(tmp_path / "q.jsonl"), tokens=8))


def test_parts_that_do_not_fit_each_other_are_refused_before_anything_is_read(tmp_path):
    pairs, text = backwards(tmp_path), tiny(tmp_path)
    for recipe, message in (
        (replace(pairs, data=text.data), "reads source of a batch, which data=TextData has not"),
        (replace(pairs, loss=NextToken()), r"does not read the source of data=PairData: set loss="),
        (replace(pairs, data=text.data, loss=NextToken()), r"EncoderDecoder: set loss=GivenSource"),
        (masked(tmp_path, loss=NextToken()), "TransformerEncoder, which sees the next token"),
    ):
        with pytest.raises(ConfigError, match=message):
            task_of(recipe, abstract(recipe))
    for recipe, message in (
        (replace(pairs, model=text.model), "GivenSource is for an encoder-decoder, and Llama"),
        (replace(pairs, loss=MaskedTokens(3)), "MaskedTokens does not read the source of data="),
        (replace(text, model=pairs.model, loss=MaskedTokens(3)), "has a decoder: GivenSource"),
        (masked(tmp_path, loss=MaskedTokens(260)), "make its vocab at least 261, not 260"),
    ):
        with pytest.raises(ConfigError, match=message):
            compile_for(replace(recipe, mesh="auto"))
    for sizes in (dict(vocab=258), dict(source_vocab=258, share="none")):
        field = list(sizes)[0]
        with pytest.raises(ConfigError, match=rf"259 tokens and model\.{field}=258: make .* 259"):
            replace(pairs, model=replace(MODEL, **sizes))
    data: Any = pairs.data
    split = replace(pairs, data=replace(data, source_length=25), mesh=MeshShape(context=2))
    with pytest.raises(ConfigError, match="data.source_length=25 does not divide over the 2"):
        task_of(split, abstract(split))


def abstract(recipe: Recipe):
    from jscale.mesh import abstract_mesh

    return abstract_mesh(mesh_of(recipe, 8).shape)
