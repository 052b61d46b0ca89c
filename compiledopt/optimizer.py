"""The base of all optimizers here: torch's Optimizer, whose step runs a plan over the whole model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, overload
from weakref import ref

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from compiledopt import around
from compiledopt.arguments import BOUNDS, Bound, Extras, check_bounds, description, flags_off
from compiledopt.around.average import averages, swapped
from compiledopt.around.clip import Clipping
from compiledopt.around.loss_scale import Scaling
from compiledopt.around.schedule import SCHEDULE, Ended, ScheduledGroup, schedule_of, scheduled
from compiledopt.backends.batch import Batch
from compiledopt.backends.layout import is_sparse, scalar_dtype
from compiledopt.errors import warn
from compiledopt.explain import Explanation, explain
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule
from compiledopt.rules.traced import Traced, traced
from compiledopt.step import choose
from compiledopt.step.in_graph import register, step_in_graph
from compiledopt.step.loading import check_groups, check_states, own, restore_dtypes, tensors_of
from compiledopt.step.plan import Owner, Plan, foresee
from compiledopt.step.states import StateMaker
from compiledopt.torch_private import wants_whole_graph, watched_by

StateDict = dict[str, Any]
_outside_dynamo: list[Callable[[Optimizer], None]] = []


def _remember(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> None:
    optimizer._loading = state_dict  # type: ignore[attr-defined]


def _update_of(optimizer: type[Optimizer]) -> Callable[[Optimizer], None]:
    """The update, with Dynamo off where it is loaded: it must not trace our Python, of which it made 250 frames before it hit
    its limit of recompilations. Not a decorator, since that would import Dynamo."""
    if "torch._dynamo" not in sys.modules:
        return optimizer._update
    if not _outside_dynamo:
        _outside_dynamo.append(torch.compiler.disable(Optimizer._update))  # type: ignore[no-untyped-call]
    return _outside_dynamo[0]


class Optimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer, with `step` derived from one pure rule.

    A subclass gives its `rule`, and a constructor with torch's signature, which hands its `locals()` on to this one. What
    groups, old checkpoints and help() have of it is read off that signature. Groups, hooks, closures, state_dict and the
    registries are torch's own.
    """

    rule: ClassVar[Rule]
    # What numbers must be, in the order in which they are checked; those that a constructor does not take do not count.
    bounds: ClassVar[tuple[Bound, ...]] = BOUNDS
    # Options that a class decides, whatever a group was saved with.
    fixed: ClassVar[Mapping[str, Any]] = {}
    # What torch's __setstate__ fills into groups that were saved by an older version: the flags that are off by default,
    # which are found, and what a class says here.
    missing: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        constructor, rule = cls.__dict__.get("__init__"), getattr(cls, "rule", None)
        if constructor is not None:
            cls.missing = {**flags_off(constructor, rule), **cls.missing}
            if cls.__doc__ is not None:  # as it is under python -OO
                own = inspect.cleandoc(cls.__doc__)
                cls.__doc__ = f"{own}\n\n{description(own, constructor, rule, cls.bounds)}"

    # Dynamo loses what a constructor that it traces sets before a graph break.
    @torch._disable_dynamo  # type: ignore[untyped-decorator,attr-defined]
    def __init__(self, params: ParamsT, options: Mapping[str, Any]) -> None:
        """options: the constructor's `locals()`. All but self, params and extras become the options of the groups."""
        defaults = {k: v for k, v in options.items() if k not in ("self", "params", "extras", "__class__")} | {**self.fixed}
        extras: Extras = options.get("extras", {})
        self._check_options(defaults)
        if unknown := set(extras) - set(Extras.__annotations__):
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument '{min(unknown)}'")
        choose.check_options(defaults)
        self._forget()
        self._reasons: set[str] = set()
        self._told: set[Ended] = set()
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

    def _forget(self) -> None:
        self._number = register(self)
        self._plan: Plan | None = None
        self._scaling: Scaling | None = None
        self._clipping: Clipping | None = None
        self._captured: list[Batch] = []
        self._fresh: set[Tensor] = set()
        self._swapped = False

    def __setstate__(self, state: StateDict) -> None:
        """Take over groups and states, as torch's, when unpickled, copied or loaded; loading checks them before."""
        theirs: StateDict | None = self.__dict__.pop("_loading", None)
        for index, group in enumerate(state["param_groups"]):
            now = self.param_groups[index] if theirs is not None else {}
            # What torch's checkpoints do not know stays as it is.
            kept = {name: now[name] for name in (*Extras.__annotations__, "compiled") if name in now}
            for name, value in {**self.missing, **kept}.items():
                group.setdefault(name, value)
            group.update(self.fixed)
        if theirs is not None:
            rule = getattr(type(self), "rule", None)
            if rule is not None:
                check_groups(rule, state["param_groups"], type(self).__name__)
                check_states(rule, state["param_groups"], state["state"], type(self).__name__)
                restore_dtypes(rule, state["param_groups"], state["state"], theirs)
            own(state["state"], tensors_of(theirs))
        super().__setstate__(state)
        self._forget()
        self._reasons, self._told = set(), set()
        self._list_parameters()
        for group in self.param_groups:
            if isinstance(group, ScheduledGroup):
                group.owner = ref(self)
            for param in group["params"]:
                self._tensor_scalars(param, group)

    def _tensor_scalars(self, param: Tensor, group: Mapping[str, Any]) -> None:
        """Old checkpoints keep `step` as a number."""
        values = self.state.get(param, {})
        on_device = group.get("capturable") or group.get("fused")
        for name in self.rule.scalars & set(values):
            if not isinstance(values[name], Tensor):
                device = param.device if on_device else torch.device("cpu")
                values[name] = torch.tensor(float(values[name]), dtype=scalar_dtype(group), device=device)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's. `lr` may be a schedule (`compiledopt.schedules`), which is then computed inside the step.

        Mutates: `param_groups`; a refused group leaves them as they were. Raises: ValueError for a number out of its range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            self._schedule(len(self.param_groups) - 1)
        except BaseException:
            self.param_groups.pop()
            raise
        self._list_parameters()

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group that was just added. Raises: ValueError."""
        around.check(getattr(type(self), "rule", None), group)

    def _list_parameters(self) -> None:
        """All parameters, for Dynamo: looking into the groups would make it guard on every number there, and compile again
        whenever one changed."""
        self._traceable = [param for group in self.param_groups for param in group["params"]]

    def _schedule(self, index: int, schedule: Schedule | None = None) -> None:
        """Give a group its schedule: this one, one that stands there as `lr`, or that of another optimizer with this group."""
        group = self.param_groups[index]
        given = dict.get(group, "lr")  # as it stands there; a rule of one's own need not have a rate
        schedule = schedule or (given if isinstance(given, Schedule) else None)
        if isinstance(group, ScheduledGroup) and (group.owner is None or group.owner() is not self):
            schedule = schedule or group.get(SCHEDULE)
        if schedule is not None:
            self.param_groups[index] = scheduled(dict(group), schedule, self)

    def state_dict(self) -> StateDict:
        """As torch's. A schedule is code and is not in it: `lr` is the number that it gave."""
        if self._swapped:
            raise RuntimeError("state_dict() within use_ema(): the parameters hold their averages; leave it first")
        for group in self.param_groups:
            group.get("lr")  # a scheduled group takes down its rate where it is read
        packed: StateDict = super().state_dict()
        packed["state"] = {key: values for key, values in packed["state"].items() if values}  # as torch's where there is none
        for group in packed["param_groups"]:
            group.pop(SCHEDULE, None)
        return packed

    def load_state_dict(self, state_dict: StateDict) -> None:
        """As torch's, but tensors are copied, never shared with `state_dict`, and what does not fit is refused before
        anything changes. Schedules stay those of this optimizer, come back where a number ended them, and go on from the
        steps that are loaded.

        Raises: ValueError, naming the first mismatch.
        """
        if self._swapped:
            raise RuntimeError("load_state_dict() within use_ema(): the parameters hold their averages; leave it first")
        kept = [schedule_of(group) for group in self.param_groups]
        # The last of the hooks that may exchange it: torch casts every state to its parameter's dtype, so it is read again.
        handle = self.register_load_state_dict_pre_hook(_remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)
        for index, schedule in enumerate(kept):
            if schedule is not None:
                self._schedule(index, schedule)

    # ---- stepping ----

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        closure: reevaluates the model and returns the loss; called with gradients enabled. Returns its loss, or None.
        Mutates: the parameters and `state`; never a gradient. An exception leaves them as they were.
        Raises: RuntimeError or TypeError, before any write, where a gradient or a state does not fit its parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling() and wants_whole_graph():
            step_in_graph(self._traceable, self._number)
        else:
            _update_of(type(self))(self)
        return loss

    # A scheduler wraps `step` to see that it is called, in a file that Dynamo refuses to trace; so `_update` says that it was.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, and inside torch.compile without breaking its graph. Mutates: the gradients."""
        if not torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
            return
        for param in self._traceable:
            if set_to_none:
                param.grad = None
            elif param.grad is not None:
                param.grad = torch.zeros_like(param.grad)

    def _update(self) -> None:
        self._opt_called = True
        if self._swapped:
            raise RuntimeError("step() within use_ema(): the parameters hold their averages; leave it first")
        watched = watched_by()
        if watched is not None:
            self._update_watched(watched)
            return
        self._refuse_capture()
        scaling, skipped = self._take_scale()
        plan = self._plan
        if skipped:
            return
        if plan is None or plan.owner.scaling is not scaling or not plan.fits(self.state) or not plan.run():
            self._run_new_plan(scaling)

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm over all gradients at the last step, before `max_grad_norm` clipped them: a 0-dim float64 tensor where
        the gradients are. None without such an option or before the first step."""
        norm = None if self._clipping is None else self._clipping.norm
        return torch.tensor(norm, dtype=torch.float64, device="cpu") if isinstance(norm, float) else norm

    def ema_parameters(self) -> list[Tensor]:
        """The averages that `ema_decay` keeps, in the order of the parameters; a parameter itself before its first step."""
        return averages(self.param_groups, self.state)

    @contextmanager
    def use_ema(self) -> Iterator[None]:
        """Within, the model's parameters hold their averages (`ema_decay`): `with optimizer.use_ema(): evaluate(model)`.

        Mutates: the parameters and state["ema"], exchanged in place, and back at the end. Raises: RuntimeError for a step
        or state_dict within.
        """
        if self._swapped:
            raise RuntimeError("use_ema() within use_ema()")
        with swapped(self.param_groups, self.state):
            self._swapped = True
            try:
                yield
            finally:
                self._swapped = False

    def _take_scale(self, read: bool = True) -> tuple[Scaling | None, bool]:
        """What torch.amp.GradScaler set on this optimizer, and whether it is known already that the step is left out. read:
        whether a value may be read."""
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is None and grad_scale is None:
            return None, False
        if read and found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return None, True
        scaling = (self._scaling or Scaling()) if read else Scaling()  # one that holds a tracer's tensors is not kept
        self._scaling = scaling if read else self._scaling
        scaling.set(grad_scale, found_inf)
        return scaling, False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler: whether the step divides by the scale and leaves out what is not finite, without
        waiting for the device. Where not, the scaler does it before, as for torch's foreach."""
        for group in self.param_groups:
            on_device = group.get("capturable") or group.get("fused")
            if not (group.get("fused") or group.get("compiled")) or not self._traced(group).elementwise:
                return False
            for param in group["params"]:
                if is_sparse(param.grad) or (param.device.type != "cpu" and not on_device):
                    return False
        return True

    def _refuse_capture(self) -> None:
        """Refuse a CUDA graph capture that could not replay, before anything is recorded. Raises: RuntimeError."""
        if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):  # type: ignore[no-untyped-call]
            return
        for group in self.param_groups:
            if not group.get("capturable") and any(param.is_cuda for param in group["params"]):
                raise RuntimeError(
                    "Attempting CUDA graph capture of step() for an instance of "
                    f"{type(self).__name__} but param_groups' capturable is False. Pass capturable=True."
                )
        if self._plan is None or not self._plan.fits(self.state) or self._plan.waiting:
            raise RuntimeError(
                "CUDA graph capture of a step() that needs new kernels or states, or with gradients that are None: "
                "run step() once before, with the same parameters and all their gradients"
            )

    def make_states(self) -> None:
        """Make the states of all parameters now, as Adagrad does, instead of at their first gradients."""
        maker = StateMaker(self.state)
        for group in self.param_groups:
            program = self._traced(group)
            for param in group["params"]:
                if maker.make(program, param, group, len(group["params"])):
                    self._fresh.add(param)

    def _update_watched(self, watched: str) -> None:
        """A step of operators alone, for who looks at them; its plan holds their tensors and is not kept."""
        scaling, skipped = self._take_scale(read=False)
        if not skipped:
            clipping = Clipping(on_host=False) if self._is_clipped() else None
            self._make_plan(scaling, clipping, watched).run()
            self._clipping = clipping

    def _traced(self, group: Mapping[str, Any]) -> Traced:
        return traced(around.derived(self.rule, group), group)

    def _is_clipped(self) -> bool:
        return any(self._traced(group).is_clipped for group in self.param_groups)

    def _make_plan(self, scaling: Scaling | None, clipping: Clipping | None, watched: str | None = None) -> Plan:
        for index in range(len(self.param_groups)):  # a schedule may have been put into a group by hand
            self._schedule(index)
        self._tell_ended()
        name, groups = type(self).__name__, self.param_groups
        return Plan(Owner(name, self.rule, groups, self.state, self._reasons, self._fresh, scaling, clipping, watched))

    def _run_new_plan(self, scaling: Scaling | None) -> None:
        if self._plan is not None:  # what captured graphs read must outlive the plan
            self._captured += [batch for batch in self._plan.batches if batch.is_captured]
        self._plan = None
        self._clipping = (self._clipping or Clipping()) if self._is_clipped() else None
        plan = self._plan = self._make_plan(scaling, self._clipping)
        if not plan.run():
            raise RuntimeError(f"{type(self).__name__}: parameters, gradients or states changed during the step")

    def _tell_ended(self) -> None:
        """Say once of a schedule that a number took its place. Not where the number is 0: so distributed checkpoints take a
        step that makes the states, before they put the rate back."""
        for index, group in enumerate(self.param_groups):
            ended = group.ended if isinstance(group, ScheduledGroup) else None
            if ended is None or ended in self._told or group["lr"] == 0:
                continue
            self._told.add(ended)
            warn(
                f"the schedule {ended.schedule} of param_groups[{index}] ended, since {ended.by} set its lr to {group['lr']}; "
                "to go on with it, assign the schedule to group['lr'] again, or load a state_dict"
            )

    def refresh(self) -> None:
        """Bring numbers of the groups that changed to the device, for replays of a captured step: with capturable=True, call it
        between replays after changing a float (a scheduler does). Tensors changed in place need no call; step() does it itself.

        Mutates: the device's copy of the numbers, in the order of the current stream. Does nothing without such a copy.
        """
        for batch in (*(self._plan.batches if self._plan is not None else ()), *self._captured):
            batch.refresh()

    # ---- knowing ----

    def compile(self) -> None:
        """Compile ahead of the first step what it will need, as if every parameter had a gradient of its own dtype.

        Mutates: nothing of the optimizer. Raises: RuntimeError with the reason, where compiled=True or fused=True
        cannot be had.
        """
        foresee(self.rule, self.param_groups, self.state, self._current_plan())

    @property
    def executor(self) -> str:
        """Which executor runs the step: "compiled", "foreach", "for-loop", or several joined with " + "."""
        entries = foresee(self.rule, self.param_groups, self.state, self._current_plan())
        names = [entry.choice.executor for entry in entries]
        return " + ".join(dict.fromkeys(names)) or "none"

    def explain(self, *, source: bool = False) -> str:
        """What runs, and why, as text: executor, program, kernels, launches, bytes. source: with the generated kernel."""
        return str(self._explanation(source=source))

    def _current_plan(self) -> Plan | None:
        return self._plan if self._plan is not None and self._plan.fits(self.state) else None

    def _explanation(self, source: bool = False) -> Explanation:
        return explain(type(self).__name__, self.rule, self.param_groups, self.state, self._current_plan(), source)
