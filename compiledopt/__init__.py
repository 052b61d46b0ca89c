"""torch.optim, compile-first: one rule, one kernel, one call over the whole model."""

import sys
from typing import TYPE_CHECKING, Any

import torch.optim

from compiledopt import lr_scheduler, menu, schedules, swa_utils
from compiledopt.algorithms.adadelta import Adadelta
from compiledopt.algorithms.adafactor import Adafactor
from compiledopt.algorithms.adagrad import Adagrad
from compiledopt.algorithms.adam import Adam, AdamW
from compiledopt.algorithms.adamax import Adamax
from compiledopt.algorithms.asgd import ASGD
from compiledopt.algorithms.lbfgs import LBFGS
from compiledopt.algorithms.muon import Muon
from compiledopt.algorithms.nadam import NAdam
from compiledopt.algorithms.radam import RAdam
from compiledopt.algorithms.rmsprop import RMSprop
from compiledopt.algorithms.rprop import Rprop
from compiledopt.algorithms.sgd import SGD
from compiledopt.algorithms.sparse_adam import SparseAdam
from compiledopt.around import schedule as _schedule
from compiledopt.around.schedule import ScheduledGroup
from compiledopt.combined import Combined, hidden_matrices
from compiledopt.lookahead import Lookahead
from compiledopt.menu import create_optimizer, list_optimizers
from compiledopt.optimizer import Optimizer
from compiledopt.own import define
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total
from compiledopt.sam import SAM
from compiledopt.stats import compile_stats
from compiledopt.version import VERSION

if TYPE_CHECKING:  # the others of menu.PUBLISHED are imported when they are asked for
    from compiledopt.algorithms.published.a2grad import A2Grad
    from compiledopt.algorithms.published.accsgd import AccSGD
    from compiledopt.algorithms.published.adabelief import AdaBelief
    from compiledopt.algorithms.published.adabound import AdaBound
    from compiledopt.algorithms.published.adagc import AdaGC
    from compiledopt.algorithms.published.adago import AdaGO
    from compiledopt.algorithms.published.adahessian import AdaHessian
    from compiledopt.algorithms.published.adai import Adai
    from compiledopt.algorithms.published.adam_atan2 import AdamAtan2
    from compiledopt.algorithms.published.adam_mini import AdamMini
    from compiledopt.algorithms.published.adamg import AdamG
    from compiledopt.algorithms.published.adamod import AdaMod
    from compiledopt.algorithms.published.adamp import SGDP, AdamP
    from compiledopt.algorithms.published.adams import AdamS
    from compiledopt.algorithms.published.adamuon import AdaMuon
    from compiledopt.algorithms.published.adamw_schedule_free import AdamWScheduleFree
    from compiledopt.algorithms.published.adan import Adan
    from compiledopt.algorithms.published.adanorm import AdaNorm
    from compiledopt.algorithms.published.adapnm import AdaPNM
    from compiledopt.algorithms.published.adashift import AdaShift
    from compiledopt.algorithms.published.adasmooth import AdaSmooth
    from compiledopt.algorithms.published.ademamix import AdEMAMix
    from compiledopt.algorithms.published.adopt import ADOPT
    from compiledopt.algorithms.published.aggmo import AggMo
    from compiledopt.algorithms.published.aida import Aida
    from compiledopt.algorithms.published.alig import AliG
    from compiledopt.algorithms.published.amos import Amos
    from compiledopt.algorithms.published.ano import Ano
    from compiledopt.algorithms.published.apollo_adamw import APOLLOAdamW
    from compiledopt.algorithms.published.apollo_dqn import ApolloDQN
    from compiledopt.algorithms.published.avagrad import AvaGrad
    from compiledopt.algorithms.published.bcos import BCOS
    from compiledopt.algorithms.published.came import CAME
    from compiledopt.algorithms.published.conda import Conda
    from compiledopt.algorithms.published.dadapt_adagrad import DAdaptAdaGrad
    from compiledopt.algorithms.published.dadapt_adam import DAdaptAdam
    from compiledopt.algorithms.published.dadapt_adan import DAdaptAdan
    from compiledopt.algorithms.published.dadapt_lion import DAdaptLion
    from compiledopt.algorithms.published.dadapt_sgd import DAdaptSGD
    from compiledopt.algorithms.published.diffgrad import DiffGrad
    from compiledopt.algorithms.published.distributed_shampoo import DistributedShampoo
    from compiledopt.algorithms.published.dog import DoG
    from compiledopt.algorithms.published.dual_adam import DualAdam
    from compiledopt.algorithms.published.exadam import EXAdam
    from compiledopt.algorithms.published.fadam import FAdam
    from compiledopt.algorithms.published.fira_adamw import FiraAdamW
    from compiledopt.algorithms.published.focus import FOCUS
    from compiledopt.algorithms.published.fromage import Fromage
    from compiledopt.algorithms.published.ftrl import FTRL
    from compiledopt.algorithms.published.galore_adafactor import GaLoreAdafactor
    from compiledopt.algorithms.published.galore_adamw import GaLoreAdamW
    from compiledopt.algorithms.published.grams import Grams
    from compiledopt.algorithms.published.gravity import Gravity
    from compiledopt.algorithms.published.grokadamw import GrokAdamW
    from compiledopt.algorithms.published.grokfast_adamw import GrokFastAdamW
    from compiledopt.algorithms.published.kate import Kate
    from compiledopt.algorithms.published.kron import Kron
    from compiledopt.algorithms.published.lamb import LAMB
    from compiledopt.algorithms.published.laprop import LaProp
    from compiledopt.algorithms.published.lars import LARS
    from compiledopt.algorithms.published.lion import Lion
    from compiledopt.algorithms.published.madgrad import MADGRAD
    from compiledopt.algorithms.published.mars import MARS
    from compiledopt.algorithms.published.msvag import MSVAG
    from compiledopt.algorithms.published.nadamw import NAdamW
    from compiledopt.algorithms.published.nero import Nero
    from compiledopt.algorithms.published.normuon import NorMuon
    from compiledopt.algorithms.published.novograd import NovoGrad
    from compiledopt.algorithms.published.padam import PAdam
    from compiledopt.algorithms.published.pid import PID
    from compiledopt.algorithms.published.pnm import PNM
    from compiledopt.algorithms.published.prodigy import Prodigy
    from compiledopt.algorithms.published.qhadam import QHAdam
    from compiledopt.algorithms.published.qhm import QHM
    from compiledopt.algorithms.published.racs import RACS
    from compiledopt.algorithms.published.radam_schedule_free import RAdamScheduleFree
    from compiledopt.algorithms.published.rmsprop_tf import RMSpropTF
    from compiledopt.algorithms.published.rose import Rose
    from compiledopt.algorithms.published.scion import Scion
    from compiledopt.algorithms.published.sgd_sai import SGDSaI
    from compiledopt.algorithms.published.sgd_schedule_free import SGDScheduleFree
    from compiledopt.algorithms.published.sgdw import SGDW
    from compiledopt.algorithms.published.shampoo import Shampoo
    from compiledopt.algorithms.published.signum import Signum
    from compiledopt.algorithms.published.simplified_ademamix import SimplifiedAdEMAMix
    from compiledopt.algorithms.published.sm3 import SM3
    from compiledopt.algorithms.published.soap import SOAP
    from compiledopt.algorithms.published.sophia import SophiaG
    from compiledopt.algorithms.published.sophia_h import SophiaH
    from compiledopt.algorithms.published.splus import SPlus
    from compiledopt.algorithms.published.stable_adamw import StableAdamW
    from compiledopt.algorithms.published.stable_spam import StableSPAM
    from compiledopt.algorithms.published.tam import TAM
    from compiledopt.algorithms.published.tiger import Tiger
    from compiledopt.algorithms.published.vsgd import VSGD
    from compiledopt.algorithms.published.yogi import Yogi

__all__ = [
    "ADOPT",
    "ASGD",
    "BCOS",
    "CAME",
    "FOCUS",
    "FTRL",
    "LAMB",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "MARS",
    "MSVAG",
    "PID",
    "PNM",
    "QHM",
    "RACS",
    "SAM",
    "SGD",
    "SGDP",
    "SGDW",
    "SM3",
    "SOAP",
    "TAM",
    "VSGD",
    "A2Grad",
    "APOLLOAdamW",
    "AccSGD",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaGC",
    "AdaGO",
    "AdaHessian",
    "AdaMod",
    "AdaMuon",
    "AdaNorm",
    "AdaPNM",
    "AdaShift",
    "AdaSmooth",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adai",
    "Adam",
    "AdamAtan2",
    "AdamG",
    "AdamMini",
    "AdamP",
    "AdamS",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "AggMo",
    "Aida",
    "AliG",
    "Amos",
    "Ano",
    "ApolloDQN",
    "AvaGrad",
    "Combined",
    "Conda",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DiffGrad",
    "DistributedShampoo",
    "DoG",
    "DualAdam",
    "EXAdam",
    "FAdam",
    "FiraAdamW",
    "Fromage",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "Grams",
    "Gravity",
    "GrokAdamW",
    "GrokFastAdamW",
    "Kate",
    "Kron",
    "LaProp",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "NAdamW",
    "Nero",
    "NorMuon",
    "NovoGrad",
    "Optimizer",
    "PAdam",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "RMSpropTF",
    "Rose",
    "Rprop",
    "SGDSaI",
    "SGDScheduleFree",
    "SPlus",
    "Scion",
    "Shampoo",
    "Signum",
    "SimplifiedAdEMAMix",
    "SophiaG",
    "SophiaH",
    "SparseAdam",
    "StableAdamW",
    "StableSPAM",
    "Tiger",
    "Yogi",
    "compile_stats",
    "create_optimizer",
    "define",
    "hidden_matrices",
    "list_optimizers",
    "lr_scheduler",
    "rule",
    "schedules",
    "swa_utils",
    "total",
]
if hasattr(torch.optim, "swap_in_optimizer_params_and_state"):  # since torch 2.13
    from torch.optim import swap_in_optimizer_params_and_state

    __all__ += ["swap_in_optimizer_params_and_state"]
if hasattr(torch.optim, "functional"):  # since torch 2.15
    from torch.optim import functional  # type: ignore[attr-defined]

    __all__ += ["functional"]
    sys.modules[f"{__name__}.functional"] = functional
__version__ = VERSION

# A pickle names a class by its module: by these, whatever file it stands in, as those of the algorithms by this one.
ScheduledGroup.__module__ = __name__
for _part in (schedules.Schedule, schedules._at):
    _part.__module__ = schedules.__name__
# Pickles of the first edition name these files.
for _old, _file in (("executors.groups", _schedule), ("compiler.schedule", schedules)):
    sys.modules[f"{__name__}.{_old}"] = _file

if not TYPE_CHECKING:  # which would take every name for one of the module's

    def __getattr__(name: str) -> Any:
        if name not in menu.PUBLISHED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = menu.published(name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
