"""Text in, text out: prompts continued by a model and its tokenizer."""

import logging
from collections.abc import Sequence

import jax

from jscale.data.tokenizers import Tokenizer
from jscale.errors import ConfigError
from jscale.generate import UNKNOWN, Sampling, Sources, answers, generate
from jscale.mesh import Layout
from jscale.models.model import Model, Params

LOGGER = logging.getLogger(__name__)


def check_several(texts: Sequence[str]) -> None:
    """Raise `ConfigError` for one text where a list of them is taken: its letters would be them."""
    if isinstance(texts, str):
        raise ConfigError(f"give a list of texts, [{texts[:40]!r}], not one text")


def continue_texts(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    length: int,
    sampling: Sampling = Sampling(),
    layout: Layout | None = None,
    seed: int = 0,
) -> list[str]:
    """A continuation of each prompt, up to `length` tokens or the end of the document.

    Of an encoder-decoder it is what it makes of each prompt, a whole source. Where the model's
    logits are not numbers it ends, and a warning says so.

    Raises:
        ConfigError: no prompt, an empty one where the tokenizer has no beginning, one that is not
            Unicode text, no length, or a seed of more than 64 bits.
    """
    for prompt in prompts:
        check_text(prompt)
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"the seed must fit into 64 bits, and {seed} does not")
    check_several(prompts)
    documents = tokenizer.encode_documents(list(prompts))
    # What is gone on with is a document that has not ended.
    whole = answers(model)
    asked = Sources(documents, tokenizer.start) if whole else [doc[:-1] for doc in documents]
    rows = generate(
        model,
        params,
        asked,
        length=length,
        sampling=sampling,
        stop=tokenizer.eos,
        layout=layout,
        key=jax.random.key(seed),
    )
    if any(UNKNOWN in row for row in rows):
        LOGGER.warning("the model's logits are not numbers: a text ends where it has none to draw")
    return [tokenizer.decode([token for token in row if token != UNKNOWN]) for row in rows]


def shown(model: Model, prompt: str, text: str) -> str:
    """What there is to read: a prompt with its continuation, or what was made of it."""
    return text if answers(model) else prompt + text


def check_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the prompt {prompt!r} is not Unicode text (UTF-8)") from None
