"""What a trained model is measured by: held-out text, and tasks with right answers."""

from jscale.evaluation.greedy_match import GreedyMatch as GreedyMatch
from jscale.evaluation.multiple_choice import MultipleChoice as MultipleChoice
from jscale.evaluation.task import EvaluationTask as EvaluationTask
