"""Several algorithms as one optimizer: one step, one norm, one state_dict, one scheduler, one captured graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from compiledopt import around
from compiledopt.arguments import Extras, Unpack
from compiledopt.optimizer import Optimizer, StateDict

ALGORITHM = "algorithm"


class Combined(Optimizer):
    """Several optimizers as one: each group by the algorithm that it was made for.

        for each group:  (θ, states) ← rule of group["algorithm"](θ, g, states, options of the group)

    optimizers: of this library, made as usual, none of them LBFGS, and no parameter in two. Their groups, in order, with their
        options and what states they have, become this one's; they are not to be stepped any more. extras: what every optimizer
        takes beside torch's arguments (max_grad_norm, ema_decay, ...), for all groups, in place of what theirs say; the norm is
        over all gradients of the groups that are clipped.
    Groups say whose they are in `group["algorithm"]`, by the class's name; `add_param_group` takes that name.
    State: as the algorithms have it.
    Mutates: the parameters and the state, never a gradient.
    Raises: TypeError for what is no optimizer of this library; ValueError for a parameter in two, two classes of one name, an
    option that an algorithm refuses, and a state_dict whose groups are other algorithms'.
    """

    def __init__(self, *optimizers: Optimizer, **extras: Unpack[Extras]) -> None:
        self._algorithms: dict[str, type[Optimizer]] = {}
        groups: list[dict[str, Any]] = []
        for optimizer in optimizers:
            groups += self._groups_of(optimizer)
        for group in groups:
            group.update({name: value for name, value in extras.items() if value is not None})
        super().__init__(groups, {"extras": extras})
        for optimizer in optimizers:
            self.state.update(optimizer.state)
            self._stepper.fresh |= optimizer._stepper.fresh

    def _groups_of(self, optimizer: Any) -> list[dict[str, Any]]:
        """The groups of an optimizer, with its name in them. Raises: TypeError, ValueError."""
        if not isinstance(optimizer, Optimizer) or not optimizer._has_rules:
            raise TypeError(
                f"Combined takes optimizers of compiledopt that are one rule for each parameter, got {type(optimizer).__name__}"
            )
        if isinstance(optimizer, Combined):
            for name, algorithm in optimizer._algorithms.items():
                self._enrol(name, algorithm)
            return [_copied(group) for group in optimizer.param_groups]
        name = type(optimizer).__name__
        self._enrol(name, type(optimizer))
        return [{**_copied(group), ALGORITHM: name} for group in optimizer.param_groups]

    def _enrol(self, name: str, algorithm: type[Optimizer]) -> None:
        if self._algorithms.setdefault(name, algorithm) is not algorithm:
            raise ValueError(f"Combined got two classes of the name {name}, by which groups are known; rename one of them")

    def _class_of(self, group: Mapping[str, Any]) -> type[Optimizer]:
        name = group.get(ALGORITHM)
        if name not in self._algorithms:
            raise ValueError(f"a group of Combined has algorithm={name!r}; it is one of {sorted(self._algorithms)}")
        return self._algorithms[name]

    @property
    def _has_rules(self) -> bool:
        return True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which names its `algorithm`; options that it lacks are that class's defaults.

        Mutates: `param_groups`; a refused group leaves them as they were. Raises: ValueError for an algorithm that is not among
        those combined, and for what the algorithm refuses.
        """
        algorithm = self._class_of(param_group)
        part = algorithm([{name: value for name, value in param_group.items() if name != ALGORITHM}])  # type: ignore[call-arg,arg-type]
        for group in part.param_groups:
            super().add_param_group({**_copied(group), ALGORITHM: param_group[ALGORITHM]})
        self.state.update(part.state)
        self._stepper.fresh |= part._stepper.fresh

    def load_state_dict(self, state_dict: StateDict) -> None:
        """As any optimizer's. Raises: ValueError where a group is another algorithm's than here, and as there."""
        mine = [group[ALGORITHM] for group in self.param_groups]
        theirs = [group.get(ALGORITHM) for group in state_dict["param_groups"]]
        if len(mine) == len(theirs) and mine != theirs:
            raise ValueError(f"loaded state dict does not fit Combined: its groups are of {theirs}, and these are of {mine}")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_algorithms": self._algorithms}

    def __setstate__(self, state: StateDict) -> None:
        if "_algorithms" in state:  # a pickle or a copy; loading keeps those that there are
            self._algorithms = state["_algorithms"]
        super().__setstate__(state)


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group for another optimizer: a schedule is its rate there, until that makes it its own."""
    made = around.without_schedule(dict(group))
    schedule = around.schedule_of(group)
    return made if schedule is None else {**made, "lr": schedule}


def hidden_matrices(model: nn.Module, head: str | Iterable[str] | None = None) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a model's parameters for Muon: (hidden matrices, all others), as the papers do.

    The others are what has not two dimensions (biases, norms, convolutions), embeddings and what is tied to them, and the head.
    head: the names of the modules whose parameters are the head; None: the last `nn.Linear` of the model.
    Returns: two lists, each parameter once, in the model's order. Mutates: nothing.
    Raises: ValueError for a head that the model does not have.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982.
    """
    modules = dict(model.named_modules())
    if head is None:
        heads = [module for module in modules.values() if isinstance(module, nn.Linear)][-1:]
    else:
        names = [head] if isinstance(head, str) else list(head)
        if missing := [name for name in names if name not in modules]:
            raise ValueError(f"hidden_matrices: the model has no module {missing[0]!r}; see model.named_modules()")
        heads = [modules[name] for name in names]  # type: ignore[misc]
    apart = [*heads, *(module for module in modules.values() if isinstance(module, nn.Embedding | nn.EmbeddingBag))]
    kept = {id(param) for module in apart for param in module.parameters()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for param in model.parameters():
        (matrices if param.ndim == 2 and id(param) not in kept else others).append(param)
    return matrices, others
