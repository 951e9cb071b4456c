"""`jscale upcycle WEIGHTS RECIPE`: a run with experts that starts from a dense network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jscale.errors import ConfigError
from jscale.launch.commands.arguments import Parser, add_recipe, recipe_from
from jscale.launch.commands.progress import progress
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.data.tokenizers import Tokenizer
    from jscale.mesh import Layout
    from jscale.models.model import Model, Params
    from jscale.recipe import Recipe

ALLOWED = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest logit, by what weights are kept in
LENGTH = 16  # tokens of a row on a device that are compared


class Source(NamedTuple):
    """A dense network, its weights where a layout has them, and its tokenizer if it has one."""

    model: "Model"
    params: "Params"
    tokenizer: "Tokenizer | None"


def main(arguments: Sequence[str]) -> int:
    """Make a run's folder whose step 0 says what a dense network says."""
    options = parser().parse_intermixed_args(list(arguments))
    quiet()
    import jax

    from jscale.models.upcycle import Upcycling
    from jscale.prepare import real_mesh, task_of
    from jscale.run.session import is_new
    from jscale.run.trainer import Trainer

    recipe: Recipe = recipe_from(options).value
    folder = Path(options.run or Path("runs") / recipe.name)
    if not is_new(folder):
        raise ConfigError(f"{folder} is there already; upcycle into a new run with --run")
    task = task_of(recipe, real_mesh(recipe)[0])
    source = opened(options.weights, recipe, task.layout)
    check_tokens(recipe, source, options.weights)
    how = Upcycling(source.model.config, recipe.model)
    where = task.layout.weight_shardings(task.model.shapes, task.model.axes)
    make = jax.jit(how, out_shardings=where)
    params = make(source.params, jax.random.key(recipe.seed))
    off = apart((source.model, source.params), (task.model, params), task.layout)
    if not off <= ALLOWED[recipe.precision.store]:
        raise ConfigError(f"the networks are to say the same, and logits differ by {off:.1g}")
    del source
    with Trainer(recipe, folder) as trainer:
        trainer.start_from(params)
    print(told(how, options.weights, folder, off))
    return 0


def parser() -> Parser:
    out = Parser(
        prog="jscale upcycle",
        description="Start a run of a network with experts from a dense one's weights: its experts"
        " are copies of the dense feed-forward, whole or cut into shards, and both say the same.",
    )
    out.add_argument("weights", metavar="WEIGHTS", help="a run's folder, or a release")
    add_recipe(out)
    out.add_argument("--run", metavar="FOLDER", help="the run's folder (runs/NAME); it must be new")
    return out


def told(how: Any, weights: str, folder: Path, off: float) -> str:
    """What was done, in two lines."""
    shards = f", each of {how.shards} experts," if how.shards > 1 else ""
    return (
        f"{how.copies} copies of each feed-forward of {weights}{shards} are step 0 of {folder};"
        f" logits of random tokens are within {off:.1g} of the dense network's\n"
        f"jscale train {folder}  goes on from there"
    )


def opened(weights: str, recipe: "Recipe", layout: "Layout") -> Source:
    """The dense network of a run's folder or of a release, on the devices of the recipe's mesh.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    import jax

    from jscale.models.model import Model
    from jscale.precision import cast
    from jscale.run.restored import open_run

    store = recipe.precision.store
    if (Path(weights) / "recipe.json").is_file():
        run = open_run(Path(weights).absolute())
        model = Model(run.model.config, store=store)
        params, tokenizer = cast(run.params, store), run.tokenizer
    else:
        model, params, tokenizer = released(weights, store)
    return Source(
        model, jax.device_put(params, layout.weight_shardings(model.shapes, model.axes)), tokenizer
    )


def released(weights: str, store: str) -> tuple["Model", "Params", "Tokenizer | None"]:
    from jscale.pretrained import from_pretrained

    with progress("bytes in place") as tell:
        found = from_pretrained(weights, store=store, progress=tell)
    return found.model, found.params, found.tokenizer


def check_tokens(recipe: "Recipe", source: Source, weights: str) -> None:
    """Raises ConfigError where the recipe's tokens are others than the dense network's."""
    from jscale.run.session import open_corpus

    mine = open_corpus(recipe, None).tokenizer
    if source.tokenizer is not None and mine.fingerprint != source.tokenizer.fingerprint:
        raise ConfigError(
            f"the recipe's tokens are others than those of {weights}: set"
            f" data.tokenizer='TokenizerFile(\"{weights}\")'"
        )


def apart(
    one: tuple["Model", "Params"], other: tuple["Model", "Params"], layout: "Layout"
) -> float:
    """How far the logits of random tokens are apart, computed in float32, of the largest one."""
    import jax
    import jax.numpy as jnp

    from jscale.models.model import Model

    shape = layout.batch_ways, LENGTH * layout.length_ways
    config: Any = one[0].config
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocab)

    def logits(model: Model, params: "Params") -> Any:
        plain = Model(model.config, "float32", model.store)
        assert plain.shapes  # known before a layout is active

        def scores(params: "Params", tokens: Any) -> Any:
            with layout.active():
                network = plain.bind(params)
                return network.unembed(network(tokens).hidden)

        return jax.jit(scores)(params, tokens).astype(jnp.float32)

    first, second = (logits(*each) for each in (one, other))
    return float(jnp.abs(first - second).max() / jnp.abs(first).max())
