"""`jscale models`: whatever a recipe can name is listed, and what is said of it is so."""

import ast
import json
import os
from functools import cache
from pathlib import Path

import pytest
from laws import DECODERS

from jscale.config.reference import candidates
from jscale.formats import torchscale
from jscale.launch.architectures import architectures
from jscale.launch.cli import main
from jscale.models import Model, RetNet
from jscale.models.cards import CARDS, LAWS, RELEASES
from jscale.models.model import Config

ROOT = Path(__file__).parents[2]
NAMES = [kind.__name__ for kind in candidates(Config)]


@cache
def known():
    return {one.name: one for one in architectures()}


@pytest.fixture(params=NAMES)
def one(request):
    return known()[request.param]


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_an_architecture_has_a_card_and_says_what_it_is_and_where_it_is_from(one):
    assert one.kind in CARDS, "models/cards.py says what is proven of it"
    assert type(one.card.small) is one.kind and Model(one.card.small).size < 1_000_000
    assert all(type(config) is one.kind for config in one.sizes.values())
    assert one.what and not one.what.startswith("The sizes of") and "arXiv" in one.source
    assert all(meaning for *_, meaning in one.options)


def test_whatever_proves_something_is_there(one):
    for proof in one.card.proofs:
        assert proof.tests
        for test in proof.tests:
            path, _, name = test.partition("::")
            assert name in functions_of(path), f"{one.name}: {proof.claim}"


def test_the_laws_of_decoders_are_claimed_of_whoever_is_put_through_them(one):
    assert (LAWS in one.card.proofs) == any(type(c) is one.kind for c in DECODERS.values())


def test_who_can_be_exported_to_transformers_is_compared_with_it(one):
    claims = {proof.claim for proof in one.card.proofs}
    assert RELEASES[1].claim in claims or "huggingface" not in one.formats()


def test_no_card_is_of_an_architecture_that_no_recipe_can_name():
    assert {kind.__name__ for kind in CARDS} == set(NAMES)


def test_formats_are_those_that_have_a_table():
    listed = {one.name for one in known().values() if "torchscale" in one.formats()}
    assert listed == set(torchscale.TABLES)


def test_all_of_them_are_listed(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    heads = [line.split()[0] for line in out.splitlines() if line[:1].strip()]
    assert heads[:-1] == NAMES
    assert "llama_8b 8.03B" in out and "7b 6.92B" in out and "TorchScale's weights come in" in out


def test_one_of_them_is_shown_whole(capsys):
    words = ["retnet", "--size", "7b", "--mesh", "fsdp=8", "vocab=50304", "--length", "64"]
    assert main(["models", *words]) == 0
    out = capsys.readouterr().out
    assert "size of the residual stream" in out and "GLU(hidden=864, activation='gelu')" in out
    assert "32x4096x6912" in out and "on each device (fsdp=8)" in out and "rows of 64" in out
    assert f"{Model(RetNet.of_size('7b', 50_304)).size:,} parameters" in out
    assert "    tests/parity/test_retnet.py::test_each_form_is_the_original_s" in out


def test_json_says_the_same(capsys):
    assert main(["models", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(found) == NAMES and "torchscale" in found["RetNet"]["formats"]
    assert found["Llama"]["parameters"]["llama_8b"] == 8_030_261_248
    assert main(["models", "Llama", "dim=32", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    made = one.pop("summary")
    assert one == found["Llama"] and made["model"].startswith("Llama(vocab=256, dim=32,")
    assert sum(row["parameters"] for row in made["weights"]) == made["parameters"]
    vocab = one["options"][0]
    assert vocab["option"] == "vocab" and vocab["default"] == "required"


@pytest.mark.parametrize(
    "words, message",
    [
        (["Lama"], "there is no architecture 'Lama'; did you mean 'Llama'"),
        (["Llama", "--size", "lama_8b"], "no Llama 'lama_8b'; did you mean 'llama_8b'?"),
        (["Llama", "dims=4"], "has no field 'dims'; did you mean 'dim'?"),
        (["Llama", "heads=3"], "heads=3 must be a multiple of kv_heads=2"),
        (["Llama", "dim"], "'dim' is not an override: write field=value"),
        (["Llama", "--length", "0"], "at least 1 token"),
        (["Llama", "--mesh", "fdsp=8"], "did you mean 'fsdp'?"),
        (["--size", "7b"], "--size and --mesh are of one architecture"),
    ],
)
def test_what_is_not_there_is_said(words, message, capsys):
    assert main(["models", *words]) == os.EX_USAGE
    assert message in capsys.readouterr().err
