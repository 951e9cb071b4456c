"""A recipe's model, with what it has learnt, as the subject of an examination."""

from jscale import train
from jscale.data.tokenizers import Tokenizer
from jscale.evaluation.subject import Subject
from jscale.models.model import Params
from jscale.recipe import Recipe


def subject_of(recipe: Recipe, task: train.Task, params: Params, tokenizer: Tokenizer) -> Subject:
    """The model with these parameters; it reads as many tokens at a time as in training."""
    length = recipe.data.length
    places = recipe.data.batch // recipe.accumulate * length
    return Subject(task.model, params, tokenizer, task.layout, length, places)
