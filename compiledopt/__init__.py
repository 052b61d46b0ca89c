"""torch.optim, compile-first: one rule, one kernel, one call over the whole model."""

from compiledopt.algorithms.adadelta import Adadelta
from compiledopt.algorithms.adagrad import Adagrad
from compiledopt.algorithms.adam import Adam, AdamW
from compiledopt.algorithms.adamax import Adamax
from compiledopt.algorithms.asgd import ASGD
from compiledopt.algorithms.nadam import NAdam
from compiledopt.algorithms.radam import RAdam
from compiledopt.algorithms.rmsprop import RMSprop
from compiledopt.algorithms.rprop import Rprop
from compiledopt.algorithms.sgd import SGD
from compiledopt.compiler.stats import compile_stats
from compiledopt.optimizer import Optimizer

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "compile_stats",
]
__version__ = "0.1.0"
