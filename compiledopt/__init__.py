"""torch.optim, compile-first: one rule, one kernel, one call over the whole model."""

from compiledopt.algorithms.adam import Adam, AdamW
from compiledopt.algorithms.sgd import SGD
from compiledopt.compiler.stats import compile_stats
from compiledopt.optimizer import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "compile_stats"]
__version__ = "0.1.0"
