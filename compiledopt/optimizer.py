"""The base of all optimizers here: torch's Optimizer, whose step runs a plan over the whole model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import ParamsT

from compiledopt import around
from compiledopt.arguments import BOUNDS, Bound, Extras, check_bounds, check_matrices, complete
from compiledopt.explain import Explanation, explain
from compiledopt.rules.rule import Rule
from compiledopt.step.choose import check_options, constructor
from compiledopt.step.in_graph import register, step_in_graph
from compiledopt.step.loading import (
    check_groups,
    check_states,
    converted,
    in_precision,
    keep_as_now,
    own,
    own_numbers,
    restore_dtypes,
    tensor_scalars,
    tensors_of,
)
from compiledopt.step.plan import Plan
from compiledopt.step.stepper import Stepper
from compiledopt.torch_private import is_observed, is_profiled, is_watched_by_dynamo, outside_dynamo, wants_whole_graph

StateDict = dict[str, Any]
Loss = TypeVar("Loss")


def _remember(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> None:
    optimizer._loading = state_dict  # type: ignore[attr-defined]


class Optimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer, with `step` derived from one pure rule.

    A subclass gives its `rule`, and a constructor with torch's signature, which hands its `locals()` on to this one. What
    groups, old checkpoints and help() have of it is read off that signature. Groups, hooks, closures, state_dict and the
    registries are torch's own.
    """

    rule: ClassVar[Rule]
    # What numbers must be, in the order in which they are checked; those that a constructor does not take do not count.
    bounds: ClassVar[tuple[Bound, ...]] = BOUNDS
    fixed: ClassVar[Mapping[str, Any]] = {}  # options that a class decides, whatever a group was saved with
    # What torch's __setstate__ fills into groups that were saved by an older version: the flags that are off by default,
    # which are found, and what a class says here.
    missing: ClassVar[Mapping[str, Any]] = {}
    for_matrices: ClassVar[bool] = False  # alone: other parameters are refused

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (cls.__module__ or "").startswith(f"{__package__}."):
            cls.__module__ = __package__  # which pickles name: files may move
        constructor = cls.__dict__.get("__init__")
        if constructor is not None:
            complete(cls, constructor)

    @constructor
    def __init__(self, params: ParamsT, defaults: Mapping[str, Any]) -> None:
        """defaults: the constructor's `locals()`. All but self, params and extras become the options of the groups."""
        extras: Extras = defaults.get("extras", {})
        defaults = {k: v for k, v in defaults.items() if k not in ("self", "params", "extras", "__class__")} | {**self.fixed}
        self._check_options(defaults)
        if unknown := set(extras) - set(around.options()):
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument '{min(unknown)}'")
        check_options(defaults)
        self._begin(Stepper())
        super().__init__(params, {**defaults, **{name: value for name, value in extras.items() if value is not None}})

    @classmethod
    def __subclasses__(cls) -> list[type]:
        """The classes below, with those below this library's own in their place: registries that walk down from torch's
        Optimizer know classes by bare names (class_resolver, the short names of jsonargparse and LightningCLI), and ours
        have torch's."""
        found: list[type] = []
        for sub in type.__subclasses__(cls):
            found += sub.__subclasses__() if sub.__module__.partition(".")[0] == __package__ else [sub]
        return found

    def _check_options(self, options: dict[str, Any]) -> None:
        """Refuse what the constructor was given, before anything is made of it. Raises: ValueError."""
        check_bounds(self.bounds, options)

    def _begin(self, stepper: Stepper) -> None:
        if "_number" not in self.__dict__:  # a state that is loaded makes no other optimizer of it
            self._number = register(self)
        self._stepper = stepper
        self._swapped = self._evaluated = False

    @property
    def _plan(self) -> Plan | None:
        """The one at work."""
        return self._stepper.plan

    def __setstate__(self, state: StateDict) -> None:
        """Take over groups and states, as torch's, when unpickled, copied or loaded; loading checks them before."""
        theirs: StateDict | None = self.__dict__.pop("_loading", None)
        for index, group in enumerate(state["param_groups"]):
            own_class = self._class_of(group)
            now = self.param_groups[index] if theirs is not None else {}
            # What torch's checkpoints do not know stays as it is.
            kept = {name: now[name] for name in (*around.options(), "compiled") if name in now}
            for name, value in {**own_class.missing, **kept}.items():
                group.setdefault(name, value)
            group.update(own_class.fixed)
            if theirs is not None:
                keep_as_now(group, now)
        if theirs is not None:
            if self._has_rules:
                rules = [self.rule_of(group) for group in state["param_groups"]]
                theirs = converted(rules, state["param_groups"], state["state"], theirs)
                check_groups(rules, state["param_groups"], type(self).__name__)
                check_states(rules, state["param_groups"], state["state"], type(self).__name__)
                restore_dtypes(rules, state["param_groups"], state["state"], theirs)
            own(state["state"], tensors_of(theirs))
        super().__setstate__(state)
        self._begin(self._stepper.again() if theirs is not None else Stepper())
        self._list_parameters()
        around.adopt_groups(self)
        if self._has_rules:
            rules = [self.rule_of(group) for group in self.param_groups]
            tensor_scalars(rules, self.param_groups, self.state)
            self._stepper.share(self)
            self._see_mode()

    # ---- rules ----

    def _class_of(self, group: Mapping[str, Any]) -> type[Optimizer]:
        """Whose group it is."""
        return type(self)

    def rule_of(self, group: Mapping[str, Any]) -> Rule:
        """The rule by which a group is updated, before anything stands around it."""
        return self._class_of(group).rule

    @property
    def _has_rules(self) -> bool:
        """Whether it is one rule for each parameter, as LBFGS is not."""
        return hasattr(type(self), "rule")

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's. `lr` may be a schedule (`compiledopt.schedules`), which is then computed inside the step.

        Mutates: `param_groups`; a refused group leaves them as they were. Raises: ValueError for a number out of its range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            if self._has_rules:
                around.complete(self.rule_of(group), group)
            around.schedule_groups(self)
            if self._has_rules:
                self._stepper.share(self)
        except BaseException:
            self.param_groups.pop()
            raise
        self._list_parameters()

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group that was just added. Raises: ValueError."""
        check_matrices(type(self), group["params"])
        around.check(self.rule_of(group) if self._has_rules else None, group)

    def _list_parameters(self) -> None:
        """All parameters, for Dynamo: looking into the groups would make it guard on every number there, and compile again
        whenever one changed."""
        self._traceable = [param for group in self.param_groups for param in group["params"]]

    def state_dict(self, *, precision: Any = None) -> StateDict:
        """As torch's. A schedule is code and is not in it: `lr` is the number that it gave.

        precision: what states are converted to, as `state_dtype` says it; "float32" is what torch.optim loads. None leaves
        them as they are kept.
        """
        if self._swapped:
            raise RuntimeError("state_dict() within use_ema(): the parameters hold their averages; leave it first")
        packed: StateDict = super().state_dict()
        packed["state"] = {key: values for key, values in packed["state"].items() if values}  # as torch's where there is none
        groups = packed["param_groups"] = [around.without_schedule(group) for group in packed["param_groups"]]
        if not self._has_rules:
            return packed
        rules = [self.rule_of(group) for group in self.param_groups]
        packed["param_groups"] = [own_numbers(group, rule) for rule, group in zip(rules, groups, strict=True)]
        return packed if precision is None else in_precision(rules, self.param_groups, packed, precision)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """As torch's, but tensors are copied, never shared with `state_dict`, and what does not fit is refused before
        anything changes. Schedules stay those of this optimizer, come back where a number ended them, and go on from the
        steps that are loaded.

        Raises: ValueError, naming the first mismatch.
        """
        if self._swapped:
            raise RuntimeError("load_state_dict() within use_ema(): the parameters hold their averages; leave it first")
        kept = [around.schedule_of(group) for group in self.param_groups]
        # The last of the hooks that may exchange it: torch casts every state to its parameter's dtype, so it is read again.
        handle = self.register_load_state_dict_pre_hook(_remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)
        around.schedule_groups(self, kept)

    # ---- stepping ----

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    def step(self, closure: Callable[[], Loss] | None = None, /, **by_name: Any) -> Loss | None:  # type: ignore[misc]
        """Update every parameter that has a gradient.

        closure: reevaluates the model and returns the loss; called with gradients enabled. Returns its loss, or None.
        Mutates: the parameters and `state`; never a gradient. An exception leaves them as they were.
        Raises: RuntimeError or TypeError, before any write, where a gradient or a state does not fit its parameter.
        """
        if closure is None and not by_name and not is_dynamo_compiling() and self._stepper.steady(self):
            return None
        take = _observed_step if type(self).step is Optimizer.step and is_observed(self) else Optimizer._step
        return take(self, *(() if closure is None else (closure,)), **by_name)

    step.hooked = True  # type: ignore[attr-defined]  # torch's wrapper takes as long as a small step: only where it is seen

    def _step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        if self._evaluated:
            raise RuntimeError("step() in eval mode: the parameters are what is evaluated; call optimizer.train() before it")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        compiling = torch.compiler.is_compiling()
        if compiling and wants_whole_graph():
            step_in_graph(self._traceable, self._number)
        elif compiling or is_watched_by_dynamo():
            outside_dynamo(Optimizer._update)(self)
        else:
            self._update()
        return loss

    # A scheduler wraps `step` to see that it is called, in a file that Dynamo refuses to trace; so `_update` says that it was.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, and inside torch.compile without breaking its graph. Mutates: the gradients."""
        if not torch.compiler.is_compiling():
            self._zero_grad(set_to_none)
            return
        for param in self._traceable:
            param.grad = None if set_to_none or param.grad is None else torch.zeros_like(param.grad)

    def _zero_grad(self, set_to_none: bool) -> None:
        """torch's range for profilers takes longer than a step of a small model: only where it is seen."""
        if not set_to_none or is_profiled() or is_watched_by_dynamo():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    # ---- evaluating ----

    def eval(self) -> None:
        """Let the parameters be what the rule evaluates (Schedule-Free's average, Lookahead's slow weights), until `train`.
        A rule that does not tell the two apart has nothing to do. `state_dict` has the mode, in `group["train_mode"]`.

        Mutates: the parameters, and states that they are exchanged with. Raises: RuntimeError within use_ema().
        """
        self._set_mode(False)

    def train(self) -> None:
        """Let the parameters be what the steps update again: see `eval`."""
        self._set_mode(True)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """`eval` within, and what was before at the end: `with optimizer.evaluating(): evaluate(model)`."""
        was_training = not self._evaluated
        try:
            self.eval()
            yield
        finally:
            if was_training and self._evaluated:
                self.train()

    def _set_mode(self, training: bool) -> None:
        if self._swapped:
            raise RuntimeError("train() or eval() within use_ema(): the parameters hold their averages; leave it first")
        if self._has_rules:
            try:
                self._stepper.set_mode(self, training)
            finally:  # interrupted after it was done
                self._see_mode()

    def _see_mode(self) -> None:
        self._evaluated = any(group.get("train_mode") is False for group in self.param_groups)

    def _update(self) -> None:
        self._opt_called = True
        if self._swapped:
            raise RuntimeError("step() within use_ema(): the parameters hold their averages; leave it first")
        self._stepper.step(self)

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm over all gradients at the last step, before `max_grad_norm` clipped them: a 0-dim float64 tensor where
        the gradients are. None without such an option or before the first step."""
        return self._stepper.grad_norm

    @property
    def skipped(self) -> Tensor | None:
        """How many steps `skip_nonfinite` left out: a 0-dim tensor where the counts are. None without it, or before a step."""
        return around.skipped((param for group in self.param_groups for param in group["params"]), self.state)

    def ema_parameters(self) -> list[Tensor]:
        """The averages that `ema_decay` keeps, in the order of the parameters; a parameter itself before its first step."""
        return around.averages(self.param_groups, self.state)

    @contextmanager
    def use_ema(self) -> Iterator[None]:
        """Within, the model's parameters hold their averages (`ema_decay`): `with optimizer.use_ema(): evaluate(model)`.

        Mutates: the parameters and state["ema"], exchanged in place, and back at the end. Raises: RuntimeError for a step
        or state_dict within.
        """
        if self._swapped or self._evaluated:
            raise RuntimeError("use_ema() " + ("within use_ema()" if self._swapped else "in eval mode: call train() before it"))
        with around.swapped(self.param_groups, self.state):
            self._swapped = True
            try:
                yield
            finally:
                self._swapped = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler: whether the step divides by the scale and leaves out what is not finite, without
        waiting for the device. Where not, the scaler does it before, as for torch's foreach."""
        return self._stepper.supports_loss_scale(self)

    def make_states(self) -> None:
        """Make the states of all parameters now, as Adagrad does, instead of at their first gradients."""
        compiling = torch.compiler.is_compiling()
        (outside_dynamo(Stepper.make_states) if compiling else Stepper.make_states)(self._stepper, self)

    def refresh(self) -> None:
        """Bring numbers of the groups that changed to the device, for replays of a captured step: with capturable=True, call it
        between replays after changing a float (a scheduler does). Tensors changed in place need no call; step() does it itself.

        Mutates: the device's copy of the numbers, in the order of the current stream. Does nothing without such a copy.
        """
        self._stepper.refresh()

    # ---- knowing ----

    def compile(self) -> None:
        """Compile ahead of the first step what it will need, as if every parameter had a gradient of its own dtype.

        Mutates: nothing of the optimizer. Raises: RuntimeError with the reason, where compiled=True or fused=True
        cannot be had.
        """
        self._stepper.foresee(self)

    @property
    def executor(self) -> str:
        """Which executor runs the step: "compiled", "foreach", "for-loop", or several joined with " + "."""
        names = [entry.choice.executor for entry in self._stepper.foresee(self)]
        return " + ".join(dict.fromkeys(names)) or "none"

    def explain(self, *, source: bool = False) -> str:
        """What runs, and why, as text: executor, program, kernels, launches, bytes. source: with the generated kernel."""
        return str(self._explanation(source=source))

    def _explanation(self, source: bool = False) -> Explanation:
        plan = self._stepper.current_plan(self)
        rules = [self.rule_of(group) for group in self.param_groups]
        return explain(type(self).__name__, rules, self.param_groups, self.state, plan, source)


# Who is told of a step, by a hook or an error, is told of the method, and of its arguments as they were given.
Optimizer._step.__qualname__ = Optimizer.step.__qualname__
Optimizer.step.__signature__ = inspect.signature(Optimizer._step)  # type: ignore[attr-defined]
_observed_step = torch.optim.Optimizer.profile_hook_step(Optimizer._step)
