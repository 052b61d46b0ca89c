"""Faults of the kinds that users meet, for faults.py: off by one, a wrong sign or dtype, a missing branch, check or warning, a
state that is not committed, a stale cache, swapped arguments. Each with tests of the default run that should fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """name: room:what; file: a pattern below compiledopt/; find: a text that is there exactly once; put: what takes its place;
    tests: those that should notice. interpreted*.py are run by test_triton.py::test_in_the_interpreter."""

    name: str
    file: str
    find: str
    put: str
    tests: tuple[str, ...]


FAULTS: list[Fault] = []


def fault(name: str, file: str, find: str, put: str, *tests: str) -> None:
    FAULTS.append(Fault(name, file, find, put, tests))


def oracle(case: str, executor: str = "compiled", dtype: str = "float32") -> str:
    return f"test_parity.py::test_error_against_the_oracle[{case}-torch.{dtype}-{executor}]"


def states(case: str, executor: str = "compiled") -> str:
    return f"test_parity.py::test_states_and_missing_gradients[{case}-{executor}]"


def reducing(name: str, dtype: str = "float32") -> str:
    return f"test_passes.py::test_error_against_the_oracle[{name}-torch.{dtype}]"


def adafactor(label: str, executor: str = "compiled", dtype: str = "float32") -> str:
    return f"test_not_elementwise.py::test_error_against_the_oracle[Adafactor-{label}-{executor}-torch.{dtype}]"


def interpreted(case: str, capturable: bool) -> str:
    return f"interpreted.py::test_against_the_for_loop[{case}-{capturable}]"


def schedule(label: str) -> str:
    return f"test_lr_scheduler.py::test_against_torch[{label}-SGD-float]"


def textbook(case: str) -> str:
    return f"test_formula.py::test_the_rule_is_the_textbooks[{case}]"


def promise(name: str, algorithm: str) -> str:
    return f"test_contract.py::test_kept_by_torch_and_here[{name}-{algorithm}]"


MUON = "test_not_elementwise.py::test_muon_against_its_definition"
FUNCTIONS = "test_lr_scheduler.py::test_functions_give_what_the_classes_give"

# ---- algorithms ----

fault("algorithms:adadelta-eps", "adadelta.py", "(acc_delta + eps).sqrt()", "acc_delta.sqrt()", oracle("Adadelta-default"))
fault(
    "algorithms:adadelta-square-of-the-step",
    "adadelta.py",
    "(1 - rho) * delta * delta",
    "(1 - rho) * delta",
    oracle("Adadelta-default"),
)
fault(
    "algorithms:adafactor-eps-of-float32",
    "adafactor.py",
    "torch.finfo(dtype).eps",
    "torch.finfo(torch.float32).eps",
    "test_not_elementwise.py::test_adafactors_epsilon_is_its_dtypes",
)
fault(
    "algorithms:adafactor-mean-of-rows-not-bounded",
    "adafactor.py",
    "row_var.mean(-2, keepdim=True).clamp_min(tiny)",
    "row_var.mean(-2, keepdim=True)",
    promise("nothing_happens_for_zeros", "Adafactor"),
)
fault(
    "algorithms:adafactor-no-threshold",
    "adafactor.py",
    "_at_least(root_mean_square(update) / d, 1.0)",
    "(root_mean_square(update) / d)",
    adafactor("all"),
)
fault(
    "algorithms:adafactor-rate-not-bounded",
    "adafactor.py",
    "torch.minimum(lr, step.rsqrt())",
    "lr",
    "test_not_elementwise.py::test_adafactors_rate_falls_with_the_steps",
)
fault(
    "algorithms:adagrad-decay-a-step-late",
    "adagrad.py",
    "1 + step * lr_decay",
    "1 + (step + 1) * lr_decay",
    oracle("Adagrad-lr_decay"),
)
fault(
    "algorithms:adagrad-initial-value",
    "adagrad.py",
    '{"sum": "initial_accumulator_value"}',
    '{"sum": 0.0}',
    oracle("Adagrad-initial"),
)
fault(
    "algorithms:adagrad-states-late",
    "adagrad.py",
    "self.make_states()",
    "pass",
    "test_state.py::test_adagrads_states_are_there_at_once",
)
fault(
    "algorithms:adam-eps-inside",
    "adam.py",
    "largest.sqrt() / (1 - beta2**step) ** 0.5 + eps",
    "(largest.sqrt() + eps) / (1 - beta2**step) ** 0.5",
    oracle("Adam-default", dtype="float64"),
)
fault(
    "algorithms:adam-amsgrad-smallest",
    "adam.py",
    "torch.maximum(max_exp_avg_sq, exp_avg_sq)",
    "torch.minimum(max_exp_avg_sq, exp_avg_sq)",
    oracle("Adam-amsgrad"),
)
fault(
    "algorithms:adam-no-bias-correction",
    "adam.py",
    "lr / (1 - beta1**step) * exp_avg / denominator",
    "lr * exp_avg / denominator",
    oracle("Adam-default"),
)
fault("algorithms:adamax-eps", "adamax.py", "grad.abs() + eps", "grad.abs()", textbook("Adamax-weight_decay"))
fault(
    "algorithms:asgd-average-a-step-early",
    "asgd.py",
    "(step - t0).clamp_min",
    "(step - t0 + 1).clamp_min",
    states("ASGD-averaging"),
)
fault(
    "algorithms:asgd-rate-a-step-late",
    "asgd.py",
    "(1 + lambd * lr * step) ** alpha",
    "(1 + lambd * lr * (step - 1)) ** alpha",
    states("ASGD-averaging"),
    oracle("ASGD-averaging"),
)
fault(
    "algorithms:nadam-product-of-the-next",
    "nadam.py",
    "mu_product = mu_product * mu\n",
    "mu_product = mu_product * mu_next\n",
    oracle("NAdam-default"),
)
fault(
    "algorithms:nadam-next-is-now",
    "nadam.py",
    "0.96 ** ((step + 1) * momentum_decay)",
    "0.96 ** (step * momentum_decay)",
    oracle("NAdam-momentum_decay"),
)
fault(
    "algorithms:radam-rectifies-early",
    "parts.py",
    "** 0.5, length > 5",
    "** 0.5, length > 4",
    oracle("RAdam-default"),
)
fault(
    "algorithms:rmsprop-variance-sign",
    "rmsprop.py",
    "square_avg - grad_avg * grad_avg",
    "square_avg + grad_avg * grad_avg",
    oracle("RMSprop-centered"),
)
fault(
    "algorithms:rmsprop-eps-inside",
    "rmsprop.py",
    "variance.sqrt() + eps",
    "(variance + eps).sqrt()",
    oracle("RMSprop-default", dtype="float64"),
)
fault(
    "algorithms:rprop-gradient-kept-after-a-turn",
    "rprop.py",
    "torch.where(agreement < 0, 0.0, grad)",
    "grad * 1.0",
    oracle("Rprop-default"),
)
fault("algorithms:rprop-no-largest-step", "rprop.py", ".clamp_max(step_sizes[1])", "", oracle("Rprop-etas"))
fault("algorithms:sgd-dampens-at-first", "sgd.py", "later = 1 - first", "later = 1 - 0 * first", oracle("SGD-dampening"))
fault(
    "algorithms:sgd-nesterov-without-gradient",
    "sgd.py",
    "grad + momentum * momentum_buffer if nesterov",
    "momentum * momentum_buffer if nesterov",
    oracle("SGD-nesterov"),
)
fault(
    "algorithms:sparse-adam-second-correction",
    "sparse_adam.py",
    "(1 - betas[1] ** step) ** 0.5",
    "(1 - betas[1] ** step)",
    "test_not_elementwise.py::test_sparse_gradients[SparseAdam-options6-torch.float32]",
)
fault(
    "algorithms:decoupled-decay-without-rate",
    "parts.py",
    "param * (1 - lr * weight_decay), grad",
    "param * (1 - weight_decay), grad",
    oracle("AdamW-weight_decay"),
)
fault("algorithms:maximize-lost", "parts.py", "-grad if maximize else grad", "grad", oracle("AdamW-maximize"))
fault("algorithms:muon-rms-of-the-shorter", "muon.py", 'op("maximum", rows, columns)', 'op("minimum", rows, columns)', MUON)
fault("algorithms:muon-ratio-turned", "muon.py", '"maximum", 1.0, rows / columns', '"maximum", 1.0, columns / rows', MUON)
fault(
    "algorithms:muon-nesterov-swapped",
    "muon.py",
    "grad.lerp(momentum_buffer, momentum) if nesterov",
    "momentum_buffer.lerp(grad, momentum) if nesterov",
    MUON,
)
fault("algorithms:muon-decay-without-rate", "muon.py", "kept=1 - lr * weight_decay", "kept=1 - weight_decay", MUON)
fault(
    "algorithms:muon-zeros-divided-by-zero",
    "muon.py",
    "x.norm().to(dtype).clamp_min(eps)",
    "x.norm().to(dtype)",
    promise("nothing_happens_for_zeros", "Muon"),
)
fault(
    "algorithms:lbfgs-first-step",
    "lbfgs.py",
    "min(1.0, divide(1.0, float(grad.abs().sum()))) * lr",
    "1.0 * lr",
    "test_not_elementwise.py::test_lbfgs_is_torchs[default]",
)
fault(
    "algorithms:lbfgs-history-grows",
    "lbfgs.py",
    "kept[max(0, len(kept) - history_size) :]",
    "kept",
    "test_not_elementwise.py::test_lbfgs_is_torchs[history]",
)
fault(
    "algorithms:lbfgs-not-brought-back",
    "lbfgs.py",
    "            self._place(position)\n            self.state[self._params[0]].clear()",
    "            self.state[self._params[0]].clear()",
    "test_not_elementwise.py::test_lbfgs_goes_back_where_its_closure_raises[wolfe-3]",
)
fault(
    "algorithms:line-search-curvature",
    "line_search.py",
    "SUFFICIENT, CURVATURE = 1e-4, 0.9",
    "SUFFICIENT, CURVATURE = 1e-4, 0.1",
    "test_not_elementwise.py::test_lbfgs_is_torchs[wolfe]",
)

# ---- optimizer ----

fault(
    "optimizer:adamw-loads-l2-decay",
    "optimizer.py",
    "            group.update(own_class.fixed)\n",
    "",
    "test_signature.py::test_adamw_stays_decoupled[loaded-absent]",
)
fault(
    "optimizer:wish-lost-by-loading",
    "optimizer.py",
    '(*around.options(), "compiled") if name in now',
    '("compiled",) if name in now',
    "test_state.py::test_what_a_checkpoint_of_torch_does_not_know_stays",
)
fault(
    "optimizer:loading-shares-memory",
    "optimizer.py",
    '            own(state["state"], tensors_of(theirs))\n',
    "",
    "test_state.py::test_loading_shares_no_memory[Adam]",
)
fault(
    "optimizer:loading-casts-states",
    "optimizer.py",
    '                restore_dtypes(rules, state["param_groups"], state["state"], theirs)\n',
    "",
    "test_state.py::test_states_keep_the_dtype_that_their_rule_makes",
)
fault(
    "optimizer:spurious-scheduler-warning",
    "optimizer.py",
    "        self._opt_called = True\n",
    "",
    "test_lr_scheduler.py::test_a_step_is_seen_by_schedulers",
)
fault(
    "optimizer:refused-group-stays",
    "optimizer.py",
    "            self.param_groups.pop()\n            raise",
    "            raise",
    "test_around.py::test_what_cannot_be",
)
fault(
    "optimizer:averages-stay",
    "optimizer.py",
    "            finally:\n                self._swapped = False",
    "            finally:\n                pass",
    "test_around.py::test_evaluate_with_averages",
)
fault(
    "optimizer:empty-states-saved",
    "optimizer.py",
    'for key, values in packed["state"].items() if values}',
    'for key, values in packed["state"].items()}',
    "test_habits.py::test_a_state_dict_without_states_is_torchs[compiled]",
)
fault(
    "optimizer:closure-without-gradients",
    "optimizer.py",
    "            with torch.enable_grad():\n                loss = closure()",
    "            with torch.no_grad():\n                loss = closure()",
    promise("a_closure_is_called_with_gradients_enabled", "AdamW"),
)
fault(
    "optimizer:schedule-lost-by-loading",
    "optimizer.py",
    "        around.schedule_groups(self, kept)\n",
    "",
    "test_around.py::test_resumes_in_the_middle[Adam]",
)

# ---- step ----

fault(
    "step:fused-false",
    "choose.py",
    "if foreach is False or fused is False:",
    "if foreach is False:",
    "test_optimizer.py::test_choice",
)
fault(
    "step:contradiction-taken",
    "choose.py",
    "    if compiled and differentiable:",
    "    if False:",
    "test_optimizer.py::test_choice",
)
fault(
    "step:loads-a-wrong-shape",
    "loading.py",
    "if isinstance(value, torch.Tensor) and value.shape != shape:",
    "if False:",
    "test_state.py::test_a_state_that_does_not_fit_changes_nothing[shaped_otherwise-]",
)
fault(
    "step:loads-two-counts",
    "loading.py",
    "if isinstance(value, torch.Tensor) and value.numel() != 1:",
    "if False:",
    "test_state.py::test_a_state_that_does_not_fit_changes_nothing[with_two_steps-]",
)
fault(
    "step:count-rounded-by-loading",
    "loading.py",
    "if values[name].dtype != dtype:",
    "if values[name].dtype is torch.int64:",
    "test_state.py::test_numbers_of_a_parameter_are_not_rounded_to_its_dtype[torch.bfloat16]",
)
fault(
    "step:states-of-a-failed-step-stay",
    "states.py",
    "            self.made.append((param, name))\n",
    "",
    "test_failures.py::test_a_failed_step_leaves_no_state_beside_others",
)
fault(
    "step:an-average-resets-momentum",
    "states.py",
    "any(name not in traced.rule.added for name in missing)",
    "bool(missing)",
    "test_around.py::test_an_average_begun_later[SGD]",
)
fault("step:counts-shared", "states.py", "return spare.pop()", "return spare[-1]", "test_state.py::test_state_is_torchs")
fault(
    "step:complex-state-real",
    "states.py",
    "complex(value, value)",
    "complex(value, 0)",
    "test_parity.py::test_complex[Rprop-default-compiled-torch.complex64]",
)
fault(
    "step:first-lost-where-states-were-made-ahead",
    "plan.py",
    "entry.first = first or entry.param in owner.fresh",
    "entry.first = first",
    "test_own.py::test_the_first_update_after_states_were_made_ahead[compiled]",
)
fault(
    "step:a-gradient-that-comes-later",
    "plan.py",
    "                    self.waiting.append(param)\n",
    "",
    states("AdamW-default"),
)
fault(
    "step:states-stay-where-memory-ran-out",
    "plan.py",
    "            maker.undo()\n",
    "",
    "test_between_steps.py::test_no_room_for_states_or_copies[first-compiled-device]",
)
fault(
    "step:none-among-numbers",
    "plan.py",
    "self.main.read() == self.flags",
    "self.main.read() is not None",
    "test_passes.py::test_a_number_that_was_none_is_another_program",
)
fault(
    "step:listed-three-times",
    "plan.py",
    "seen[id(entry.param)] = number + 1",
    "seen[id(entry.param)] = 1",
    "test_optimizer.py::test_a_parameter_listed_twice_is_updated_twice[compiled]",
)
fault(
    "step:norm-measured-again",
    "plan.py",
    "self.owner.measure(batches, again=number > 0)",
    "self.owner.measure(batches, again=False)",
    "test_around.py::test_a_parameter_listed_twice",
)
fault(
    "step:weight-of-an-average-stale",
    "averaging.py",
    '        self.group["weight"] = weight\n',
    "",
    "test_swa.py::test_against_torch[default-False]",
)
fault(
    "step:second-reason-unsaid",
    "decide.py",
    "if entry.choice.fallback and entry.choice.reason not in said:",
    "if entry.choice.fallback and not said:",
    "test_fallback.py::test_each_reason_is_said_once",
)
fault(
    "step:reason-said-again",
    "decide.py",
    "        said.add(reason)\n",
    "",
    "test_fallback.py::test_each_reason_is_said_once",
)
fault(
    "step:graph-keeps-its-copies",
    "in_graph.py",
    "        _copy([(other, mine) for mine, other in given])\n",
    "",
    "test_dynamo.py::test_fullgraph[False-aot_eager]",
)
fault(
    "step:step-with-infinities",
    "stepper.py",
    "            return None, True\n",
    "            return None, False\n",
    "test_amp.py::test_as_if_there_were_no_scale[Adam-all-compiled]",
)
fault(
    "step:scales-what-is-sparse",
    "foresee.py",
    "if is_sparse(param.grad) or (param.device.type",
    "if (param.device.type",
    "test_amp.py::test_who_leaves_it_to_the_scaler",
)

# ---- around ----

fault(
    "around:clips-upwards",
    "clip.py",
    "share > 1.0, 1.0, share)",
    "share > 1.0, share, 1.0)",
    "test_around.py::test_norms[compiled]",
)
fault(
    "around:norm-without-eps",
    "clip.py",
    "max_grad_norm / (grad_norm + 1e-6)",
    "max_grad_norm / grad_norm",
    "test_around.py::test_a_norm_as_small_as_its_epsilon",
)
fault(
    "around:average-begins-at-zero",
    "average.py",
    'apply("where", count == 0, 1.0, 1 - ema_decay)',
    "1 - ema_decay",
    "test_around.py::test_an_average_begun_later[Adam]",
)
fault(
    "around:schedule-a-step-early",
    "around/schedule.py",
    "rate(step)",
    "rate(step + 1)",
    "test_around.py::test_all_three_against_torch[for-loop-SGD-all-torch.float64]",
)
fault(
    "around:takes-an-option-of-the-rule",
    "transformation.py",
    "(rule is None or name not in rule.options)",
    "True",
    "test_own.py::test_options_named_as_the_librarys_are_the_rules_own[compiled]",
)
fault(
    "around:norm-of-one-executor",
    "clip.py",
    "total = tensors[0] + known",
    "total = tensors[0]",
    "test_around.py::test_the_norm_is_over_all_executors",
)
fault(
    "around:norm-of-scaled-gradients",
    "clip.py",
    "        if grad_scale is not None:\n",
    "        if False:\n",
    "test_around.py::test_clipping_under_a_scaler[True]",
)
fault(
    "around:scale-kept-though-unscaled",
    "loss_scale.py",
    "                if value is None:\n                    values[name].fill_(without)",
    "                if value is None:\n                    pass",
    "test_amp.py::test_unscaled_at_some_steps_only",
)
fault(
    "around:number-ends-no-schedule",
    "around/schedule.py",
    "isinstance(value, float) and value == self.shown and",
    "isinstance(value, float) and",
    "test_around.py::test_the_rate_is_there_when_read_and_can_be_replaced",
)
fault(
    "around:rate-of-the-last",
    "around/schedule.py",
    "torch.stack(values).max()",
    "torch.stack(values).min()",
    "test_around.py::test_absent_gradients[Adam-all-compiled]",
)
fault(
    "around:rate-of-a-dict-stale",
    "around/schedule.py",
    "    def items(self) -> Any:\n        self._show()\n",
    "    def items(self) -> Any:\n",
    "test_around.py::test_however_the_group_is_read",
)
fault(
    "step:interrupted-between-batches",
    "step/plan.py",
    "        with self.owner.writing():\n",
    "        if True:\n",
    "test_interrupts.py::test_a_step_is_finished",
)
fault(
    "around:averages-not-taken-back",
    "average.py",
    "            if exchanged:\n                exchange_all()",
    "            pass",
    "test_around.py::test_evaluate_with_averages",
)
fault(
    "around:listed-twice-not-exchanged",
    "average.py",
    "pairs = list(_made(groups, state).items())",
    'pairs = [(p, state[p]["ema"]) for group in groups for p in group["params"]]',
    "test_around.py::test_averages_of_a_parameter_listed_twice",
)
fault(
    "around:warns-of-a-rate-of-zero",
    "around/schedule.py",
    ' or group["lr"] == 0:',
    ":",
    "test_around.py::test_a_rate_of_zero_for_one_step_is_not_told_of",
)
fault(
    "around:warns-again",
    "around/schedule.py",
    "        told.add(ended)\n",
    "",
    "test_around.py::test_an_ended_schedule_is_told_of_and_comes_back",
)
fault(
    "around:schedule-saved",
    "around/schedule.py",
    "for name, value in group.items() if name != SCHEDULE}",
    "for name, value in group.items()}",
    "test_around.py::test_resumes_in_the_middle[Adam]",
)
fault(
    "around:norm-stays-scaled",
    "loss_scale.py",
    "options[NORM] = options[NORM] * share",
    "pass",
    "test_around.py::test_clipping_under_a_scaler[True]",
)
fault(
    "around:skips-the-good-steps",
    "loss_scale.py",
    "found_inf != 0.0",
    "found_inf == 0.0",
    "test_amp.py::test_as_if_there_were_no_scale[Adam-all-compiled]",
)
fault(
    "around:average-beyond-one",
    "average.py",
    "lambda value: 0.0 <= value <= 1.0",
    "lambda value: 0.0 <= value",
    "test_around.py::test_what_cannot_be",
)
fault(
    "around:average-of-what-reduces",
    "average.py",
    "rule is not None and not rule.elementwise:",
    "False:",
    "test_around.py::test_rules_that_are_not_elementwise[Muon-foreach]",
)

# ---- eager ----

BY_HAND = "test_state.py::test_a_state_changed_by_hand_is_seen"
fault(
    "eager:count-changed-by-hand",
    "rows.py",
    "[state[name].item() for state in self.dicts] != [value] * len(self.dicts)",
    "False",
    BY_HAND,
)
fault(
    "eager:state-exchanged",
    "rows.py",
    "if not all(map(is_, [state.get(name) for state in self.dicts], tensors)):",
    "if False:",
    BY_HAND,
)
fault("eager:always-first", "rows.py", "        self.first = False\n", "", oracle("SGD-dampening", "for-loop"))
fault(
    "eager:computes-in-bfloat16",
    "rows.py",
    "if len(distinct) == 1 and not distinct & set(HALF):",
    "if len(distinct) == 1:",
    "test_state.py::test_half_types_are_computed_in_float32[SGD-for-loop-torch.bfloat16]",
)
fault(
    "eager:memory-not-asked-for",
    "rows.py",
    "            reserve(row.room, row.devices[0])\n",
    "",
    "test_between_steps.py::test_no_room_for_temporaries[torch.float32-for-loop]",
)
fault(
    "eager:gradient-that-comes-back",
    "rows.py",
    "all(param.grad is None for param in self.idle) and ",
    "",
    "test_state.py::test_a_gradient_that_comes_back[for-loop-Adam]",
)
fault(
    "eager:chunk-goes-on-to-the-end",
    "foreach.py",
    "tensors[begin:end] for tensors in lists",
    "tensors[begin:] for tensors in lists",
    "test_source.py::test_chunks_update_each_parameter_once",
)
fault("eager:chunks-of-one", "rows.py", "            used = 0\n", "", "test_source.py::test_chunks_stay_under_the_limit")
fault(
    "eager:sparse-rows-added",
    "sparse.py",
    "tensor.index_put_(index, value)",
    "tensor.index_put_(index, value, accumulate=True)",
    "test_not_elementwise.py::test_sparse_gradients[Adagrad-options4-torch.float32]",
)
fault(
    "eager:sparse-decay-taken",
    "sparse.py",
    '    if group.get("weight_decay", 0) != 0:\n        raise RuntimeError("weight_decay option',
    '    if False:\n        raise RuntimeError("weight_decay option',
    "test_not_elementwise.py::test_sparse_gradients_that_do_not_fit",
)
fault(
    "eager:stack-of-different-steps",
    "stacked.py",
    "key = (*shape, entry.first, values)",
    "key = (*shape, entry.first, ())",
    "test_not_elementwise.py::test_stacked_and_one_by_one_agree[Adafactor]",
)
fault(
    "eager:reduces-in-bfloat16",
    "given.py",
    "return tensor.float() if tensor.dtype in HALF else tensor",
    "return tensor",
    "test_state.py::test_half_types_are_computed_in_float32[Adafactor-foreach-torch.bfloat16]",
)
fault(
    "eager:norm-not-told",
    "eager/stack.py",
    "self.given[NORM] = context.step[NORM]",
    "self.given[NORM] = 0.0",
    "test_around.py::test_rules_that_are_not_elementwise[Adafactor-foreach]",
)
fault(
    "eager:tape-writes-what-is-read-later",
    "tape.py",
    "last[home.place] == index and",
    "",
    "test_pieces.py::test_a_tape_writes_nothing_that_is_read_later",
)
fault(
    "eager:tape-of-another-layout",
    "played.py",
    "one.stride() == stride for name",
    "True for name",
    "test_pieces.py::test_calls_that_are_written_down_are_the_rule[GaLoreAdamW]",
)
fault(
    "eager:direct-always-first",
    "direct.py",
    "            entry.first = False\n",
    "",
    "test_differentiable.py::test_values_are_the_for_loops",
)
fault(
    "eager:graph-reads-what-is-overwritten",
    "evaluated.py",
    "tensor.to(wide, copy=True) for tensor in tensors",
    "tensor.to(wide) for tensor in tensors",
    "test_differentiable.py::test_gradcheck[Adam-{}]",
    "test_differentiable.py::test_gradients_flow_as_in_torch[SGD-{}]",
)
fault(
    "eager:wrong-shape-returned",
    "trial.py",
    "if value.shape != meta[name].shape:",
    "if False:",
    "test_own.py::test_rules_that_are_not_pointwise_are_tried_before_they_write",
)
fault(
    "eager:sign-of-a-fold-lost",
    "sequence.py",
    '("-" if step.negate else "")',
    '""',
    oracle("SGD-default", "for-loop"),
)
fault(
    "eager:overwrites-what-is-read-later",
    "sequence.py",
    "if name not in self.writable or self.last_use.get(node, -1) > index:",
    "if name not in self.writable:",
    "test_source.py::test_sequences_compute_what_the_program_says[None-False-0.25]",
    oracle("Adam-amsgrad", "for-loop"),
)
fault(
    "eager:writes-into-gradients",
    "sequence.py",
    'if node_name != "grad" or upcast}',
    "}",
    "test_optimizer.py::test_gradients_are_never_written[SGD-all-for-loop]",
    "test_source.py::test_sequences_compute_what_the_program_says[None-False-0.25]",
)
fault(
    "eager:calls-of-one-tensor",
    "eager/backend.py",
    "operations * (1 if self.together else len(entries))",
    "operations",
    "test_explain.py::test_operations_are_counted",
)
fault(
    "eager:kernels-of-eager-parts",
    "eager/backend.py",
    "        return Description(calls, 0, 0, *bytes_moved(first), program, lambda: text)",
    "        return Description(calls, 1, 0, *bytes_moved(first), program, lambda: text)",
    "test_explain.py::test_parts_are_apart",
)

# ---- cpp ----

MANY = "test_layouts.py::test_many_parameters[2]"
SHARES = "count * t / threads, count * (t + 1) / threads"
ROUNDED = "count / threads * t, count / threads * (t + 1)"
fault(
    "cpp:last-parameter-not-gathered",
    "gather.h",
    "false, plan.count() * t / threads, plan.count() * (t + 1) / threads",
    "false, plan.count() / threads * t, plan.count() / threads * (t + 1)",
    MANY,
)
fault(
    "cpp:last-parameter-not-committed",
    "launch.h",
    "if (stop == starts[i + 1]) commit_entry(plan, table, i);",
    "if (stop == starts[i + 1] && i + 1 < count) commit_entry(plan, table, i);",
    MANY,
)
SEEN = "test_steady.py::test_a_change_is_seen"
fault("cpp:hooks-not-seen", "step.h", "return !PyDict_GET_SIZE(one.get());", "return true;", f"{SEEN}[hooked0]")
fault("cpp:modes-not-seen", "step.h", ".included_ != 0)", ".included_ == 1)", f"{SEEN}[watched]")
fault("cpp:zero-not-seen", "changes.h", "(was != 0) != (is != 0)", "false", f"{SEEN}[decayed]")
fault("cpp:norm-of-before", "step.h", "part.norm = norm;", "", "test_steady.py::test_clipped_as_from_python[Adam]")
fault(
    "cpp:only-first-part-measured",
    "step.h",
    "{\n    if (!part.squares) continue;\n    Sums wanted;",
    "{\n    if (!part.squares || !squares.empty()) continue;\n    Sums wanted;",
    "test_steady.py::test_clipped_as_from_python[Adam]",
)
fault("cpp:number-not-read", "changes.h", "numbers[number] = is, ++changes;", "(void)is;", f"{SEEN}[other_rate]")
FAKE = "test_fake_driver.py"
BROUGHT = f"{FAKE}::test_tables_are_brought_once"
fault("triton:tables-not-brought", "part.h", " && found == elsewhere.there;", ";", BROUGHT)
fault("triton:pointers-not-brought", "part.h", "elsewhere.moved = true;", "elsewhere.moved = false;", BROUGHT)
fault(
    "triton:pointers-lent-and-known",
    "triton/tables.py",
    'self.lent, self.known = True, (b"", *self.known[1:])',
    "self.lent = False",
    f"{FAKE}::test_the_driver_brings_pointers",
)
fault(
    "triton:passes-not-proved",
    "passes_ready.py",
    "if (wrong := proved(kernel, program, dtypes, masks, device)) is not None:",
    "if (wrong := None) is not None:",
    f"{FAKE}::test_so_are_passes_and_norms[passes]",
)
fault(
    "triton:norm-not-proved",
    "norm.py",
    "if (wrong := proved(kernel, columns, len(program.columns), dtype, scalar, device)) is not None:",
    "if (wrong := None) is not None:",
    f"{FAKE}::test_so_are_passes_and_norms[norm]",
)
fault(
    "triton:only-row-measured",
    "kernels.py",
    'f"tl.load(table + {i})" if i in measured else f"c0_{i}"',
    'f"c0_{i}"',
    "interpreted_captures.py::test_a_first_step_under_inference_mode[around-False]",
)
fault(
    "triton:states-not-looked-up",
    "part.h",
    "if (find_states(plan, i, true, found) && std::equal",
    "if (true || std::equal",
    f"{FAKE}::test_a_state_that_another_thread_takes_away",
)
ALONE, REFUSED = f"{FAKE}::test_the_driver_is_given_what_triton_gives_it", f"{FAKE}::test_a_driver_that_refuses"
ANOTHER, OTHERS = f"{FAKE}::test_another_device_or_stream", f"{FAKE}::test_a_kernel_of_other_parameters_is_left_to_triton"
fault("triton:numbers-as-they-were", "part.h", "if (one.rows) one.take(found);", "", f"{ALONE}[plain]")
fault("triton:rows-not-filled", "part.h", "hand_over(elsewhere.fill);", "", f"{ALONE}[5 groups]")
fault("triton:norm-not-launched", "step.h", "!(all(pointed) && all(measured))", "false", f"{ALONE}[clipped]")
fault("triton:not-restored", "step.h", "if (early) restore(steady, done);", "", f"{REFUSED}[{{}}]")
fault("triton:stream-not-seen", "driver.h", "if (is != stream) return false;", "", f"{ANOTHER}[stream]")
fault("triton:device-not-seen", "driver.h", "if (!same) return false;", "", f"{ANOTHER}[device]")
fault("triton:watchers-not-seen", "driver.h", "|| !quiet", "", f"{FAKE}::test_who_watches_launches_sees_them")
fault(
    "triton:any-parameters",
    "prepared.py",
    "found if bits == [8 * SIZES[each] for each in found] else None",
    "found",
    f"{OTHERS}[size]",
)
fault("triton:any-launch", "prepared.py", "getattr(metadata, name, value) != value", "False", f"{OTHERS}[cluster]")
fault(
    "triton:next-row-of-few",
    "kernels.py",
    'f"tl.where(which == {row}, ',
    'f"tl.where(which == {row + 1}, ',
    "interpreted_captures.py::test_one_row_of_numbers_needs_no_table",
)
fault(
    "triton:commits-nothing",
    "step.h",
    "if (!early) commit_what_is_there(*parts[done].plan, parts[done].rows());",
    "",
    f"{FAKE}::test_threads_step_optimizers_of_their_own",
)
fault("cpp:rows-not-seen", "part.h", " && plan->layout == layout; }", "; }", "test_steady.py::test_rows_that_moved_are_seen")
fault(
    "cpp:states-not-rounded",
    "part.h",
    "rounded ? static_cast<float>(scalars.values[value])",
    "false ? static_cast<float>(scalars.values[value])",
    "test_steady.py::test_every_algorithm_as_from_python[NAdam-all]",
)
fault(
    "cpp:tiles-not-brought-back",
    "launch.h",
    "k < count && writes; ++k",
    "k < 1 && writes; ++k",
    "test_storage_attacks.py::test_memory_in_another_order_changes_no_bit[int8-{}]",
)
fault(
    "storage:copies-of-parameters-rounded",
    "choosing.py",
    "and _starts_from_parameter(rule, name, group)",
    "and False",
    "test_never_negative.py::test_a_copy_of_the_parameter_is_exact_unasked",
)
fault(
    "cpp:last-block-not-summed",
    "launch.h",
    f"run(t, {SHARES})",
    f"run(t, {ROUNDED})",
    "test_around.py::test_the_norm_does_not_depend_on_the_threads",
)
fault(
    "cpp:last-elements-not-updated",
    "launch.h",
    "k == threads ? total : total / threads",
    "total / threads",
    "test_layouts.py::test_threads_change_no_bit[2]",
)
fault(
    "cpp:odd-tensors-taken",
    "gather.h",
    "if (!is_plain(operand, plan.dispatch_keys) || operand->device()",
    "if (operand->device()",
    "test_layouts.py::test_states_that_the_launcher_does_not_take",
)
fault(
    "cpp:dtype-not-checked",
    "gather.h",
    " || operand->dtype() != plan.types[k] ||\n",
    " ||\n",
    "test_between_steps.py::test_as_torch_does[Adam-to_double-compiled]",
)
fault(
    "cpp:strides-not-checked",
    "tensors.h",
    "strides &= sizes[d] == 1 || left[d] == right[d];",
    "",
    "test_between_steps.py::test_as_torch_does[Adam-channels_last-compiled]",
)
VERSIONS = "test_failures.py::test_versions_tell_autograd_of_the_write"
fault(
    "cpp:versions-of-states",
    "launch.h",
    "if (t != kGrad) found.tensors[t]->bump_version();",
    "if (t == 0) found.tensors[t]->bump_version();",
    VERSIONS,
)
fault(
    "cpp:version-of-a-gradient",
    "launch.h",
    "if (t != kGrad) found.tensors[t]->bump_version();",
    "found.tensors[t]->bump_version();",
    VERSIONS,
)
fault(
    "cpp:nan-is-not-itself",
    "gather.h",
    "if (is != expected && !(is != is && expected != expected))",
    "if (is != expected)",
    "test_state.py::test_a_number_that_is_nan_stays_nan",
)
fault(
    "cpp:tensors-not-held",
    "launch.h",
    "    plan.hold_all();\n    plan.busy = true;",
    "    plan.busy = true;",
    "test_between_steps.py::test_gradients_taken_away_by_another_thread",
)
fault(
    "cpp:states-never-freed",
    "plan_type.h",
    "plan.entries.push_back({Owned::share(param), Owned::share(state)});",
    "plan.entries.push_back({Owned::share(param), Owned::share(Py_NewRef(state))});",
    "test_failures.py::test_nothing_keeps_an_optimizer_alive[compiled]",
)
fault(
    "cpp:state-dict-exchanged",
    "changes.h",
    "if (value != PyList_GET_ITEM(states, index++)) return false;",
    "index++;",
    "test_state.py::test_a_state_changed_by_hand_is_seen",
)
fault(
    "cpp:waiting-not-looked-at",
    "changes.h",
    "if (gradient_of(param)) return false;",
    ";",
    states("AdamW-default"),
)
fault(
    "cpp:double-count-read-as-float",
    "tensors.h",
    "if (impl->dtype() == caffe2::TypeMeta::Make<double>()) return *static_cast<const double*>(data);",
    "",
    "test_state.py::test_default_dtype_float64_makes_wide_steps",
)
fault(
    "cpp:row-of-nobody",
    "gather.h",
    "if (given.table && entry.row < 0) return kRegroup;",
    "",
    "test_state.py::test_a_gradient_that_comes_back[compiled-SGD]",
)
fault(
    "cpp:norm-reads-on",
    "launch.h",
    "int64_t end = std::min(begin + kBlock, length), row = length;",
    "int64_t end = begin + kBlock, row = length;",
    "test_around.py::test_norms[compiled]",
)
IN_BLOCKS = "test_passes_in_blocks.py::test_error_against_the_oracle[Lamb-shapes0-int8]"
fault("cpp:tiles-cut-blocks", "passes.cpp", "if (!pass.block) return", "if (true) return", IN_BLOCKS)
fault(
    "cpp:scales-of-the-first-row",
    "passes.cpp",
    "at / shape.row * before(shape.row) + before(at % shape.row)",
    "before(at)",
    IN_BLOCKS,
)
fault(
    "cpp:totals-cut-blocks",
    "totals.h",
    "row > kStretch ? std::min(kStretch, row - begin % row) : std::min(kStretch / row * row, length - begin)",
    "std::min(kStretch, length - begin)",
    "test_passes_in_blocks.py::test_totals_of_what_is_kept_in_blocks[Prodigy-d-int8]",
)
LONG = "test_passes.py::test_columns_of_parts_that_end_anywhere"
fault("cpp:last-rows-not-added", "passes.cpp", "windows[i].rows = 1;", "", LONG)
fault("cpp:columns-of-two-matrices", "tiles.h", " || cursor.matrix != window.matrix) flush", ") flush", LONG)
fault(
    "cpp:mean-over-nothing",
    "passes.cpp",
    "double(job.shape.size(pass.axes)) / double(size)",
    "double(job.shape.size(pass.axes))",
    reducing("Rows"),
)
fault(
    "cpp:remainder-not-folded",
    "tiles.h",
    "for (int64_t i = whole; i < n; ++i) sums[i - whole] = join(sums[i - whole], values[i]);",
    "",
    reducing("Lars"),
)
fault(
    "cpp:largest-forgets-nan",
    "tiles.h",
    "A larger(A a, A b) { return !(a <= b) & !(b != b) ? a : b; }",
    "A larger(A a, A b) { return a >= b ? a : b; }",
    "test_passes.py::test_special_values_stay_where_torch_leaves_them[Sm3]",
)
fault("cpp:row-spread-stands", "tiles.h", "from = row_by_row ? from + 1 :", "from = row_by_row ? from :", reducing("Rows"))
fault("cpp:column-as-row-in-turned-memory", "rule.h", "if (row == shape->rows) row = 0, ++matrix;", "", reducing("Rows"))
fault(
    "cpp:totals-without-remainder",
    "totals.h",
    "for (int64_t i = whole; i < length; ++i) sums[i - whole] += values[i];",
    "",
    "test_around.py::test_groups_with_bounds_of_their_own[compiled]",
)
fault(
    "cpp:bfloat16-rounds-up",
    "prefix.h",
    "(bits + 0x7fff + ((bits >> 16) & 1)) >> 16",
    "(bits + 0x8000) >> 16",
    "test_kernel.py::test_conversions[torch.bfloat16]",
)
fault(
    "cpp:bfloat16-nan-to-infinity",
    "prefix.h",
    "(bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded",
    "rounded",
    "test_kernel.py::test_conversions[torch.bfloat16]",
)
fault(
    "cpp:float16-largest",
    "prefix.h",
    "half = magnitude >= 0x477ff000 ? 0x7c00 : half;",
    "",
    "test_kernel.py::test_conversions[torch.float16]",
)
fault(
    "cpp:maximum-forgets-nan",
    "prefix.h",
    "T max_propagate_nan(T a, T b) { return !(a <= b) & !(b != b) ? a : b; }",
    "T max_propagate_nan(T a, T b) { return a > b ? a : b; }",
    "test_parity.py::test_special_values[Adam-amsgrad-compiled]",
    "test_parity.py::test_special_values[Adamax-default-compiled]",
)
fault(
    "cpp:failure-tried-again",
    "cpp/kernels.py",
    "            _kernels[identity] = error\n",
    "",
    "test_fallback.py::test_a_failure_is_not_tried_again_for_each_optimizer",
)
fault(
    "cpp:library-that-cannot-be-loaded",
    "cpp/kernels.py",
    "except (OSError, AttributeError) as error:",
    "except AttributeError as error:",
    "test_fallback.py::test_falls_back_with_one_warning[no_place_to_load_from]",
)
fault(
    "cpp:column-scalars-in-float",
    "sources.py",
    "    scalar = C_TYPES[compute_dtype(dtypes)]",
    '    scalar = "float"',
    oracle("Adam-default", dtype="float64"),
)

# ---- backends: the cache and the lowering ----

fault(
    "backends:damaged-entry-loaded",
    "cache.py",
    "return content if checksum == _checksum(content) else None",
    "return content",
    "test_cache.py::test_a_damaged_entry_is_none",
)
fault(
    "backends:key-without-compiler",
    "cache.py",
    "compiler_identity(), processor()",
    "processor()",
    "test_cache.py::test_the_key_knows_what_matters",
)
fault(
    "backends:key-without-processor",
    "cache.py",
    "compiler_identity(), processor()",
    "compiler_identity()",
    "test_cache.py::test_the_key_knows_what_matters",
)
fault(
    "backends:cache-of-a-group-trusted",
    "cache.py",
    "(stat.S_IWGRP | stat.S_IWOTH)",
    "stat.S_IWOTH",
    "test_cache.py::test_a_directory_that_others_may_write_to_is_not_trusted[0o770]",
)
fault(
    "backends:lock-kept",
    "cache.py",
    '            (directory / f".{name}.lock").unlink(missing_ok=True)\n',
    "",
    "test_cache.py::test_a_lock_left_by_a_process_that_died",
)
fault(
    "backends:inductor-left-patched",
    "inductor.py",
    "                    setattr(module, name, original)",
    "                    pass",
    "test_kernel.py::test_lowering_leaves_inductor_as_it_was",
)
fault(
    "backends:float64-in-float32",
    "inductor.py",
    "return torch.float64 if torch.float64 in dtypes else torch.float32",
    "return torch.float32",
    oracle("Adam-default", dtype="float64"),
)
fault(
    "backends:difference-turned",
    "inductor.py",
    "(-left, other) if last else (left, -other)",
    "(left, -other) if last else (-left, other)",
    oracle("SGD-default"),
    oracle("RMSprop-centered"),
)
fault(
    "backends:buffer-of-its-own-taken",
    "inductor.py",
    'if sum(kind == "length" for kind, _ in arguments) != 1:',
    "if False:",
    "test_fallback.py::test_falls_back_with_one_warning[own_buffer]",
)
fault(
    "backends:one-element-strides",
    "layout.py",
    "for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1)",
    "for s, n in zip(tensor.stride(), tensor.shape, strict=True))",
    "test_layouts.py::test_every_layout_in_one_optimizer[Adam-all-default]",
    "test_layouts.py::test_what_is_dense",
)
fault(
    "backends:gradient-of-another-layout",
    "layout.py",
    "return all(n == 1 or s == t for",
    "return any(n == 1 or s == t for",
    "test_layouts.py::test_gradients_of_another_layout[Adam-all-compiled-transposed]",
    "test_layouts.py::test_gradients_of_another_layout[Adam-all-for-loop-expanded]",
    "test_layouts.py::test_what_is_dense",
)
fault(
    "backends:fused-count-wide",
    "layout.py",
    ' == torch.float64 and not group.get("fused")',
    " == torch.float64",
    "test_state.py::test_default_dtype_float64_makes_wide_steps",
)
fault(
    "backends:numbers-in-two-places",
    "gathered.py",
    "places == {param.device.type} if on_device else len(places) < 2",
    "True",
    "test_triton.py::test_states_that_are_moved_under_inference_mode",
)
fault(
    "backends:reduced-state-turned",
    "gathered.py",
    "elif value.is_contiguous():",
    "elif True:",
    "test_passes.py::test_a_parameter_that_is_laid_anew_between_steps",
    "test_passes.py::test_a_reduced_state_that_is_not_contiguous",
)
fault(
    "backends:state-of-another-layout",
    "gathered.py",
    "if same_layout(param, value) or value.layout is not torch.strided:",
    "if True:",
    "test_between_steps.py::test_as_torch_does[Adam-channels_last-compiled]",
)
fault(
    "backends:tensors-of-a-launch-miscounted",
    "gathered.py",
    " + len(entry.runs.scalar_names)",
    "",
    "test_triton.py::test_more_tensors_than_a_launch_takes",
)
fault(
    "backends:norm-over-groups-without-bound",
    "backends/batch.py",
    "if entry.traced.is_clipped and entry.param.grad is not None:",
    "if entry.param.grad is not None:",
    "test_around.py::test_groups_with_bounds_of_their_own[foreach]",
)
fault(
    "backends:norm-in-half",
    "backends/batch.py",
    "any(grad.dtype is torch.float64 for grad in given) else torch.float32",
    "any(grad.dtype is torch.float64 for grad in given) else given[0].dtype",
    "test_around.py::test_the_norm_of_half_gradients",
)
fault(
    "backends:always-first",
    "gathered.py",
    "            self.first = [False] * len(self.entries)\n",
    "",
    oracle("SGD-dampening"),
)
fault(
    "backends:negated-gradients-read-raw",
    "gathered.py",
    "grad.is_conj() or grad.is_neg() or",
    "grad.is_conj() or",
    "test_layouts.py::test_gradients_of_another_layout[Adam-all-compiled-negated lazily]",
)
fault(
    "backends:conjugated-gradients-read-raw",
    "gathered.py",
    "grad.is_conj() or grad.is_neg() or",
    "grad.is_neg() or",
    "test_layouts.py::test_conjugate_gradients[compiled]",
)
fault(
    "backends:all-is-written",
    "backends/batch.py",
    "sum(read[name] for name in written)",
    "sum(read.values())",
    "test_explain.py::test_numbers_of_adamw",
)

# ---- triton ----

fault(
    "triton:offsets-of-32-bits",
    "triton/kernels.py",
    "tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * XBLOCK",
    "tl.load(blocks + 2 * tl.program_id(0) + 1) * XBLOCK",
    "interpreted.py::test_offsets_beyond_int32",
)
fault(
    "triton:alignment-of-pointers",
    "triton/kernels.py",
    "    if (bits % {alignment} == 0) & (",
    "    if (",
    "interpreted_captures.py::test_which_blocks_are_aligned",
)
fault(
    "triton:alignment-of-the-last-block",
    "triton/kernels.py",
    "(xoffset + XBLOCK <= xnumel)",
    "(xoffset <= xnumel)",
    "interpreted_captures.py::test_which_blocks_are_aligned",
)
fault(
    "triton:last-block-not-cut",
    "triton/tables.py",
    "(lengths + block - 1) // block",
    "lengths // block",
    interpreted("AdamW-default", False),
)
fault(
    "triton:parts-numbered-wrong",
    "triton/tables.py",
    "counts.cumsum(0) - counts, counts)",
    "counts.cumsum(0), counts)",
    interpreted("AdamW-default", False),
)
fault(
    "triton:numbers-filled-once",
    "triton/tables.py",
    "elif self.filled != values:",
    "elif False:",
    "interpreted_captures.py::test_one_row_of_numbers_needs_no_table",
)
fault(
    "triton:bound-of-the-first-group",
    "triton/batch.py",
    'self.context.number(group, "max_grad_norm")',
    'self.context.number(0, "max_grad_norm")',
    "interpreted.py::test_schedule_clipping_and_average_on_the_device[AdamW-False]",
)
fault(
    "triton:pointers-of-a-graph-let-go",
    "triton/tables.py",
    "        self.kept.append((table, self.read_by_graphs()))\n",
    "",
    "interpreted_captures.py::test_what_a_graph_reads_is_kept",
    "interpreted_captures.py::test_steps_between_a_capture_and_its_first_replay",
)
fault(
    "triton:memory-short-for-ever",
    "triton/readiness.py",
    'if isinstance(error, MemoryError) or "out of memory" in str(error) or is_lost(device):',
    "if isinstance(error, MemoryError) or is_lost(device):",
    "interpreted_captures.py::test_memory_that_is_short_is_not_a_kernel_that_cannot_run",
)
fault(
    "triton:first-for-ever",
    "triton/capturable.py",
    "later = upload(self._rows(active, states, columns, [False] * len(self.first)), self.device)",
    "later = addresses",
    "interpreted_captures.py::test_a_first_step_is_forgotten_after_it",
)
fault(
    "triton:key-without-first",
    "triton/capturable.py",
    "            self.addresses, self.key = self.later, (*self.key[:-1], False)\n",
    "            self.key = (*self.key[:-1], False)\n",
    "interpreted_captures.py::test_a_first_step_is_forgotten_after_it",
)
fault(
    "triton:numbers-mirrored-once",
    "triton/capturable.py",
    "        if values.tobytes() != self.known:\n",
    "        if self.known is None:\n",
    interpreted("AdamW-default", True),
)
fault(
    "triton:number-becomes-a-tensor",
    "triton/capturable.py",
    "return all(self._option_dtypes(group) == self.options for group in self.mirror.groups)",
    "return True",
    "interpreted_captures.py::test_numbers_that_change_what_they_are[AdamW]",
)
fault(
    "triton:captures-without-gradients",
    "triton/capturable.py",
    "    if missing:\n",
    "    if False:\n",
    "interpreted_captures.py::test_captures_that_are_refused",
)
fault(
    "triton:captures-stale-numbers",
    "triton/capturable.py",
    "key[2] == batch.key[2] and batch.mirror.stale()",
    "False",
    "interpreted_captures.py::test_captures_that_are_refused",
)
fault(
    "triton:place-of-another-group",
    "triton/capturable.py",
    "self.places[group, name])",
    "self.places[min(self.groups), name])",
    "interpreted.py::test_groups_that_differ_share_a_launch",
)
fault(
    "triton:last-rows-not-computed",
    "triton/capturable.py",
    "-(-rows // ROWS)",
    "rows // ROWS",
    "interpreted_captures.py::test_more_rows_than_a_block",
)
fault(
    "triton:last-time-counts",
    "triton/tuning.py",
    "min(found, times[candidate])",
    "max(found, times[candidate])",
    "test_triton.py::test_tuning_goes_around_and_takes_the_least",
)
fault(
    "triton:states-read-as-parameters",
    "triton/kernels.py",
    'ast.Name(f"p{index}") if kind == "tensor"',
    'ast.Name("p0") if kind == "tensor"',
    interpreted("AdamW-default", False),
)

# ---- rules ----

fault(
    "rules:lerp-turned",
    "ieee.py",
    "b - (b - a) * (1 - weight)",
    "b - (b - a) * weight",
    "test_source.py::test_numbers_follow_ieee[lerp]",
)
fault(
    "rules:maximum-of-nan",
    "ieee.py",
    "return a if a != a or a >= b else b",
    "return a if a >= b else b",
    "test_source.py::test_numbers_follow_ieee[maximum]",
)
fault(
    "rules:power-overflow-sign",
    "ieee.py",
    "math.inf if a > 0 or b % 2 == 0 else -math.inf",
    "math.inf",
    "test_source.py::test_numbers_follow_ieee[pow]",
)
fault(
    "rules:floor-of-infinity",
    "ieee.py",
    "float(math.floor(a)) if math.isfinite(a) else a",
    "float(math.floor(a))",
    "test_source.py::test_numbers_follow_ieee[floor]",
)
SPELLED = "test_source.py::test_operations_as_torch_spells_them"
fault("rules:rsub-turned", "spellings.py", 'op("sub", other, input if alpha', 'op("sub", input, other if alpha', SPELLED)
fault("rules:alpha-lost", "trace.py", "args = (args[0], scale * args[1])", "args = (args[0], args[1])", SPELLED)
fault(
    "rules:remainder",
    "ieee.py",
    "return rest + b if rest != 0 and",
    "return rest + b if rest == 1 and",
    "test_source.py::test_numbers_follow_ieee[remainder]",
)
fault(
    "rules:clamp-turned",
    "spellings.py",
    "def clamp_min(input: Any, min: Any) -> Any:\n    return maximum(",
    "def clamp_min(input: Any, min: Any) -> Any:\n    return minimum(",
    SPELLED,
)
fault(
    "rules:addcdiv-value-lost",
    "spellings.py",
    "(tensor1 if value is None else value * tensor1) / tensor2",
    "tensor1 / tensor2",
    SPELLED,
)
fault(
    "rules:norm-without-root",
    "rules/reduced.py",
    "(input * input).sum(dim, keepdim).sqrt()",
    "(input * input).sum(dim, keepdim)",
    reducing("Lars"),
)
fault(
    "rules:branch-on-the-sign",
    "symbol.py",
    "__lt__ = __le__ = __gt__ = __ge__ = _compared",
    "__lt__ = __le__ = __ge__ = _compared",
    "test_own.py::test_a_branch_that_would_fail_later_fails_at_once",
)
fault(
    "rules:kernels-share-a-key",
    "program.py",
    'lines.append(f"%{index} = {node.op}({args})")',
    'lines.append(f"%{index} = {node.op}")',
    "test_kernel.py::test_another_constant_is_another_kernel",
)
fault(
    "rules:none-is-a-number",
    "options.py",
    'flags.append("".join("-" if one is None else "n" for one in value))',
    'flags.append("")',
    "test_passes.py::test_a_number_that_was_none_is_another_program",
)
fault(
    "rules:second-beta-is-the-first",
    "options.py",
    '(f"{name}[{index}]", one)',
    '(f"{name}[{index}]", value[0])',
    oracle("Adam-default"),
)
fault(
    "rules:variant-of-another-dtype",
    "traced.py",
    "key = (param.dim(), param.dtype, order_of(param), outer_of(param))",
    "key = (param.dim(), torch.float32, order_of(param), outer_of(param))",
    "test_not_elementwise.py::test_adafactors_epsilon_is_its_dtypes",
)
fault(
    "rules:shape-of-another-dtype",
    "traced.py",
    "key = (param.dtype, *param.shape)\n",
    "key = (param.dtype, param.numel())\n",
    "test_passes.py::test_states_of_parameters_with_as_many_elements",
)
fault(
    "rules:reads-the-device-for-a-branch",
    "options.py",
    "return there or bool(value != 0)",
    "return bool(value != 0)",
    "test_triton.py::test_numbers_on_a_device_are_not_read_for_branches",
)
fault(
    "rules:formula-turned",
    "formula.py",
    "_rest(weight) * a + weight * b",
    "_rest(weight) * b + weight * a",
    "test_formula.py::test_text_and_latex",
)
fault("rules:letter-of-another", "formula.py", '"lr": "gamma"', '"lr": "lambda"', "test_formula.py::test_text_and_latex")
fault(
    "rules:product-in-stacks-swapped",
    "products.py",
    "beta=beta, alpha=alpha), level)",
    "beta=alpha, alpha=beta), level)",
    "test_not_elementwise.py::test_muon_rounds_where_torch_does[foreach]",
)
fault(
    "rules:reduction-of-reductions-too-early",
    "rules/reductions.py",
    "self.levels[node] = below + (node.op in REDUCTIONS)",
    "self.levels[node] = max(below, int(node.op in REDUCTIONS))",
    reducing("Extremes"),
)

# ---- schedules ----

fault(
    "schedules:number-minus-schedule",
    "schedule.py",
    "def __rsub__(self, other: float) -> Schedule:\n        return _combined(operator.sub, other, self)",
    "def __rsub__(self, other: float) -> Schedule:\n        return _combined(operator.sub, self, other)",
    "test_lr_scheduler.py::test_combinations_of_schedules",
)
fault(
    "schedules:step-early",
    "schedules.py",
    "gamma ** _floor(step / step_size)",
    "gamma ** _floor((step + 1) / step_size)",
    schedule("step_gamma"),
)
fault(
    "schedules:milestone-late",
    "schedules.py",
    "step >= milestone, 1.0, 0.0",
    "step > milestone, 1.0, 0.0",
    schedule("multi_step"),
)
fault(
    "schedules:constant-late",
    "schedules.py",
    "factor + _where(step >= total_iters",
    "factor + _where(step > total_iters",
    schedule("constant"),
)
fault(
    "schedules:linear-goes-on",
    "schedules.py",
    "(end_factor - start_factor) * _at_most(step, total_iters)",
    "(end_factor - start_factor) * step",
    schedule("linear"),
)
fault(
    "schedules:polynomial-without-power",
    "schedules.py",
    "/ total_iters) ** power",
    "/ total_iters)",
    schedule("polynomial_power"),
)
fault(
    "schedules:cosine-of-twice",
    "schedules.py",
    "(1 + _cos(math.pi * step / T_max)) / 2",
    "(1 + _cos(2 * math.pi * step / T_max)) / 2",
    schedule("cosine"),
)
fault(
    "schedules:cyclic-scaled-by-cycle",
    "schedules.py",
    "scale_fn(cycle if by_cycle else step)",
    "scale_fn(cycle)",
    schedule("cyclic_exp"),
)
fault(
    "schedules:cyclic-function-mode", "schedules.py", '"iterations" if mode == "exp_range" else "cycle"', '"cycle"', FUNCTIONS
)
fault(
    "schedules:cyclic-function-way-down",
    "schedules.py",
    "float(step_size_up if step_size_down is None else step_size_down)",
    "float(step_size_up)",
    FUNCTIONS,
)
fault(
    "schedules:one-cycle-function-peak",
    "schedules.py",
    "(float(pct_start * total_steps) - 1,",
    "(float(pct_start * total_steps),",
    FUNCTIONS,
)
fault(
    "schedules:one-cycle-function-end", "schedules.py", "initial / final_div_factor)", "max_lr / final_div_factor)", FUNCTIONS
)
fault("schedules:one-cycle-line", "schedules.py", 'anneal_strategy == "cos", total_steps)', "True, total_steps)", FUNCTIONS)
fault(
    "schedules:sequential-late",
    "schedules.py",
    "_where(step < begin, value,",
    "_where(step <= begin, value,",
    "test_lr_scheduler.py::test_composed[warmup_cosine-float]",
    "test_lr_scheduler.py::test_composed[three-float]",
)
fault(
    "schedules:sequential-from-the-start",
    "schedules.py",
    "schedule.function(step - begin)",
    "schedule.function(step)",
    "test_lr_scheduler.py::test_composed[warmup_cosine-float]",
)

# ---- lr_scheduler ----

fault(
    "lr_scheduler:step-on-resume",
    "lr_scheduler.py",
    "if self._is_initial and step > 0 and not self._steps_on_resume:",
    "if self._is_initial and step > 0:",
    "test_lr_scheduler.py::test_last_epoch[step]",
)
fault(
    "lr_scheduler:nothing-to-multiply",
    "lr_scheduler.py",
    "        if before == 0:",
    "        if False:",
    "test_lr_scheduler.py::test_what_torch_divides_by_zero",
)
fault(
    "lr_scheduler:least-not-taken-out",
    "lr_scheduler.py",
    "self._least + (rate - self._least) * (now / before)",
    "rate * (now / before)",
    schedule("cosine_min"),
)
fault(
    "lr_scheduler:both-betas-cycle",
    "lr_scheduler.py",
    '(momentum, *group["betas"][1:])',
    "(momentum, momentum)",
    "test_lr_scheduler.py::test_the_second_beta_stays",
)
fault(
    "lr_scheduler:momentum-with-the-rate",
    "lr_scheduler.py",
    "self._cycles(self.max_momentums[group], self.base_momentums[group])",
    "self._cycles(self.base_momentums[group], self.max_momentums[group])",
    schedule("cyclic"),
)
fault(
    "lr_scheduler:ends-a-step-early",
    "lr_scheduler.py",
    "if self.last_epoch > self.total_steps:",
    "if self.last_epoch >= self.total_steps:",
    "test_lr_scheduler.py::test_warnings_and_the_end_of_one_cycle",
)
fault(
    "lr_scheduler:chain-that-has-no-form",
    "lr_scheduler.py",
    "if not isinstance(scheduler, _Scaling) or scheduler._least != 0:",
    "if not isinstance(scheduler, _Scaling):",
    "test_lr_scheduler.py::test_chains_without_a_pure_form",
)
fault(
    "lr_scheduler:lost-warning",
    "lr_scheduler.py",
    "    if not scheduler._get_lr_called_within_step:",
    "    if False:",
    "test_lr_scheduler.py::test_warnings_and_the_end_of_one_cycle",
)
fault(
    "lr_scheduler:milestones-unsorted",
    "lr_scheduler.py",
    "schedules.multi_step(sorted(self.milestones.elements()), self.gamma)",
    "schedules.multi_step(sorted(self.milestones), self.gamma)",
    schedule("multi_step_twice"),
)

# ---- swa_utils ----

fault(
    "swa_utils:counts-one-more",
    "swa_utils.py",
    "1.0 / (averaged + 1.0)",
    "1.0 / (averaged + 2.0)",
    "test_swa.py::test_against_torch[default-False]",
)
fault(
    "swa_utils:decay-turned",
    "swa_utils.py",
    "else 1.0 - self.decay",
    "else self.decay",
    "test_swa.py::test_against_torch[ema-False]",
)
fault(
    "swa_utils:first-model-averaged",
    "swa_utils.py",
    "self._averages(mine, theirs) if count else None",
    "self._averages(mine, theirs)",
    "test_swa.py::test_against_torch[ema_multi-False]",
    "test_swa.py::test_the_first_model_is_copied",
)
fault(
    "swa_utils:buffers-not-copied",
    "swa_utils.py",
    "                kept.copy_(current)\n",
    "                pass\n",
    "test_swa.py::test_against_torch[default-False]",
)
fault(
    "swa_utils:not-counted",
    "swa_utils.py",
    "        self.n_averaged += 1\n",
    "",
    "test_swa.py::test_against_torch[default-False]",
)
fault(
    "swa_utils:another-model",
    "swa_utils.py",
    "if places is None or places[1].model is not model:",
    "if places is None:",
    "test_swa.py::test_between_updates",
)
fault(
    "swa_utils:average-exchanged",
    "swa_utils.py",
    " or not all(map(is_, known.targets, mine)):",
    ":",
    "test_swa.py::test_between_updates",
)
fault(
    "swa_utils:pickles-its-plan",
    "swa_utils.py",
    'if key not in ("_places", "_known")',
    "if key",
    "test_swa.py::test_between_updates",
)
fault("swa_utils:decay-beyond-one", "swa_utils.py", "not 0.0 <= decay <= 1.0:", "not 0.0 <= decay:", "test_swa.py::test_errors")

# ---- explain ----

fault(
    "explain:norm-not-counted",
    "explain.py",
    " + clipped * dtypes[1].itemsize",
    "",
    "test_around.py::test_explain_tells_of_the_norm",
)
fault(
    "explain:rows-of-groups",
    "explain.py",
    "{(entry.group, _steps(entry)) for entry in entries}",
    "{entry.group for entry in entries}",
    "test_explain.py::test_rows_are_counted",
)
fault(
    "explain:bandwidth-of-a-copy",
    "explain.py",
    "return 3 * size / best",
    "return 2 * size / best",
    "test_explain.py::test_bandwidth_counts_two_reads_and_a_write",
)
fault(
    "explain:bytes-of-float32",
    "triton/reducing.py",
    "dtypes[int(index)].itemsize for index in found",
    "8 for index in found",
    "test_triton.py::test_explain_of_products[Muon-sm_90-4]",
)
fault(
    "explain:what-is-read-again",
    "triton/described.py",
    "kernel.bytes_per_element(dtypes) if isinstance(kernel, ReducingKernel) else bytes_moved(first)",
    "bytes_moved(first)",
    "interpreted_reductions.py::test_both_explanations_tell_of_the_same[Adafactor]",
)
fault(
    "triton:blamed-for-a-lost-device",
    "triton/readiness.py",
    "in str(error) or is_lost(device):",
    "in str(error):",
    "test_triton.py::test_a_device_that_is_lost_is_no_fault_of_a_kernel",
)
fault(
    "triton:sums-of-whole-tiles",
    "triton/shaped.py",
    "passes.is_flat, split_of.get(s, 1))",
    "passes.is_flat, 1)",
    "interpreted_reductions.py::test_tiles_that_are_split[2]",
)
fault(
    "triton:waits-for-pointers",
    "triton/tables.py",
    "if self.kept or 8 * self.pointers.numel() > INLINE else",
    "if self.kept else",
    "test_fake_driver.py::test_more_pointers_than_the_driver_takes_along",
)
fault(
    "matrices:places-of-absent-gradients",
    "backends/matrices.py",
    "key=lambda place: not active[place]",
    "key=lambda place: active[place]",
    "interpreted_matrices.py::test_replays[Muon]",
)
fault(
    "matrices:blocks-that-nobody-knows-of",
    "rules/matrix_program.py",
    "Program(self.rule.name, inputs, outputs, sizes=sizes)",
    "Program(self.rule.name, inputs, outputs)",
    "test_passes_in_blocks.py::test_kernels_around_products",
)
fault(
    "matrices:codes-are-not-decoded",
    "backends/triton/stored.py",
    "for part in (self.decode, self.inner, self.encode):",
    "for part in (self.inner, self.encode):",
    "interpreted_matrices.py::test_states_that_are_kept_in_other_ways",
)
fault(
    "triton:bits-of-another-step",
    "backends/triton/reducing.py",
    "{sweep.columns[n]}",
    "{n}",
    "interpreted_reductions.py::test_random_bits_are_those_of_the_for_loop",
)
fault(
    "matrices:state-written-before-it-is-read",
    "rules/matrix_program.py",
    'if depends_on(node, MATRIX)} | {"param"} & {*own}',
    'if depends_on(node, MATRIX) and name != "param"}',
    "interpreted_matrices.py::test_against_its_definition",
)

# ---- own ----

fault(
    "own:message-without-index",
    "own.py",
    "known.element(index) if known and several else known",
    "known",
    "test_own.py::test_bad_arguments",
)
fault(
    "own:numbers-of-two-elements",
    "own.py",
    "        check_one_element(one, name)\n",
    "",
    "test_own.py::test_bad_arguments",
)
fault(
    "own:bounds-where-a-default-is-outside",
    "own.py",
    "(name, index) not in free",
    "True",
    "test_own.py::test_bounds_are_those_of_the_defaults",
)
fault(
    "own:optional-without-a-program-of-its-own",
    "rule.py",
    "frozenset(branches).union((optional or {}).values())",
    "frozenset(branches)",
    "test_own.py::test_a_state_that_a_number_makes_optional_is_another_program",
)
fault(
    "own:total-of-a-number-is-the-number",
    "trace.py",
    "if value.node.scalar:  # once for each element",
    "if value.node.scalar:\n            return value\n        if False:",
    "test_own.py::test_a_total_of_numbers_counts_elements",
)
fault(
    "own:old-groups-not-filled",
    "own.py",
    '"missing": missing',
    '"missing": {}',
    "test_own.py::test_a_checkpoint_from_before_an_option",
)
fault(
    "own:declarations-lost",
    "own.py",
    "rule(**declarations)(with_maximize(function))",
    "rule(**{k: v for k, v in declarations.items() if k != 'initial'})(with_maximize(function))",
    "test_own.py::test_initial_values",
)

# ---- arguments ----

fault(
    "arguments:beta-of-one",
    "arguments.py",
    'Bound("betas", "Invalid beta parameter", below=1.0)',
    'Bound("betas", "Invalid beta parameter", most=1.0)',
    "test_own.py::test_bad_arguments",
    "test_optimizer.py::test_torchs_error_inputs[Adam-beta1 should be between 0 and 1]",
)
fault(
    "arguments:checked-in-another-order",
    "arguments.py",
    "BOUNDS = (LR, EPS, BETA.element(0)",
    "BOUNDS = (EPS, LR, BETA.element(0)",
    "test_signature.py::test_what_is_refused_and_in_which_order_is_as_in_torch[Adam]",
)
fault(
    "arguments:schedule-of-anything",
    "arguments.py",
    'if isinstance(value, Schedule) and self.option != "lr":',
    "if False:",
    "test_signature.py::test_a_schedule_is_for_lr_alone",
)
fault(
    "arguments:flag-not-filled",
    "arguments.py",
    "p.default is False or (name in HABITS and p.default is None)",
    "p.default is False",
    "test_signature.py::test_old_groups_are_filled_as_torch_does[Adam]",
)
fault(
    "arguments:nan-taken",
    "arguments.py",
    "inside = end is None or holds(number, end)",
    "inside = end is None or number != number or holds(number, end)",
    "test_optimizer.py::test_nan_and_type_errors",
)

# ---- what stands around a rule ----

UPDATE = "test_update.py::test_against_torch"
fault("around:cautious-of-the-gradient", "around/cautious.py", "-update.change.sign()", "update.change.sign()", UPDATE)
fault("around:cautious-not-scaled", "around/cautious.py", "(mask / mask.mean().clamp_min(LEAST))", "mask", UPDATE)
fault(
    "around:decay-corrected-twice",
    "corrected_decay.py",
    'NotZero(decay * (options["lr"] / corrected_decay))',
    'NotZero(decay * (options["lr"] / corrected_decay) ** 2)',
    UPDATE,
)
fault(
    "around:largest-rate-is-todays",
    "corrected_decay.py",
    'as_float(group.get("initial_lr", group["lr"]))}',
    'as_float(group["lr"])}',
    "test_update.py::test_corrected_decay_under_a_scheduler",
    "test_update.py::test_corrected_decay_of_groups_and_schedules",
)
fault("around:size-not-the-root", "update_clipping.py", ".mean().sqrt()", ".mean()", UPDATE)
fault("around:clipped-upwards", "update_clipping.py", "size > most", "size < most", UPDATE)
fault("around:centralized-over-all", "centralize.py", "range(1, dims)", "range(0, dims)", UPDATE)
fault(
    "around:decay-is-part-of-the-update",
    "around/update.py",
    "return Update(param * new.share, _or_zeros(new.rest, theta), against, kept)",
    "return Update(param, _or_zeros(new.rest, theta) + (new.share - 1) * theta, against, kept)",
    UPDATE,
)
fault(
    "around:maximize-is-not-against",
    "around/update.py",
    'against = -plain(grad) if options.get("maximize") else plain(grad)',
    "against = plain(grad)",
    UPDATE,
)
fault(
    "around:skipped-steps-count",
    "skip_nonfinite.py",
    "for was, now in zip(old, new, strict=True)]",
    "for was, now in zip(old[:1], new[:1], strict=True)] + list(new[1:])",
    "test_skip_nonfinite.py::test_as_if_a_bad_step_had_not_been",
)
fault(
    "around:finite-steps-count-as-skipped",
    "skip_nonfinite.py",
    'apply("where", finite, 0.0, 1.0)',
    "1.0",
    "test_skip_nonfinite.py::test_as_if_a_bad_step_had_not_been",
    "test_skip_nonfinite.py::test_a_count_goes_through_a_file_and_absent_gradients_do_not_count",
)
fault(
    "around:first-does-not-wait",
    "skip_nonfinite.py",
    'apply("maximum", options["first"], states[own + 1])',
    'options["first"]',
    "test_skip_nonfinite.py::test_a_first_momentum_that_had_to_wait",
)
fault(
    "around:due-a-step-late",
    "around/every.py",
    "as_float(group.get(STEPS, 0.0)) + 1",
    "as_float(group.get(STEPS, 0.0))",
    "test_every.py::test_what_is_due_is_done_then",
)

# ---- evaluation, sums over parameters, several algorithms ----

fault(
    "step:mode-not-noted",
    "step/evaluating.py",
    "        group[MODE] = training\n",
    "        pass\n",
    "test_evaluation.py::test_eval_mode_refuses_steps_and_is_remembered",
)
fault(
    "step:converted-the-other-way",
    "step/evaluating.py",
    "_convert(evaluated[training]",
    "_convert(evaluated[not training]",
    "test_evaluation.py::test_steps_and_evaluation_are_the_papers",
)
fault(
    "step:totals-of-one-batch",
    "step/totals.py",
    "_sum(found[key], value) if key in found else value",
    "value",
    "test_whole_model.py::test_a_total_is_over_parameters_of_all_dtypes",
)
fault(
    "step:shared-state-not-written",
    "step/shared.py",
    "target.fill_(value)",
    "None",
    "test_whole_model.py::test_against_the_authors",
)
fault(
    "eager:totals-not-told",
    "eager/stack.py",
    "with told(self.totals):",
    "with told(self.totals[:1] * len(self.totals)):",
    "test_whole_model.py::test_beside_a_reduction",
)
SHAPES_SEEN = "test_steady.py::test_another_shape_and_other_threads_are_seen_by_a_rule_that_reduces"
fault(
    "cpp:sizes-of-rows-stand",
    "part.h",
    "if (plan->has_gradient(i) && plan->found(i)",
    "if (false && plan->found(i)",
    SHAPES_SEEN,
)
fault("cpp:layout-of-passes-stands", "launch.h", "passes.shapes == passes.shapes_there", "true", SHAPES_SEEN)
fault(
    "rules:smaller-state-taken-for-a-whole-one",
    "rules/traced.py",
    "made is None or made.shape != shape",
    "False",
    "test_passes.py::test_a_state_of_another_shape_keeps_a_rule_from_that",
)
fault(
    "rules:part-without-the-options-of-its-states",
    "rules/matrix_program.py",
    "return start if maker is None else",
    "return start if True else",
    "test_circumstances.py::test_a_part_of_a_rule_has_the_options_that_its_states_are_made_of",
)
fault(
    "eager:overflow-in-the-middle-of-an-update",
    "layout.py",
    "if dtype is torch.float64 or",
    "if True or",
    "test_failures.py::test_numbers_beyond_float32_are_infinite",
)
fault(
    "optimizer:algorithms-not-copied",
    "combined.py",
    'return {**super().__getstate__(), "_algorithms": self._algorithms}',
    "return super().__getstate__()",
    "test_combined.py::test_goes_on_from_a_copy",
)
fault(
    "optimizer:parts-lose-their-states",
    "combined.py",
    "            self.state.update(optimizer.state)\n",
    "",
    "test_combined.py::test_groups_that_come_later_and_states_that_were_there",
)
fault(
    "optimizer:algorithms-not-compared",
    "combined.py",
    "len(mine) == len(theirs) and mine != theirs",
    "False",
    "test_combined.py::test_goes_on_from_a_copy",
    "test_combined.py::test_what_is_refused",
)
fault(
    "optimizer:embeddings-are-hidden",
    "combined.py",
    "isinstance(module, nn.Embedding | nn.EmbeddingBag)",
    "False",
    "test_combined.py::test_hidden_matrices",
)
fault(
    "optimizer:stays-uphill",
    "sam.py",
    "        except BaseException:\n            self._return()\n",
    "        except BaseException:\n",
    "test_sam.py::test_what_is_refused_and_what_fails",
)

# ---- how values are kept ----

fault(
    "storage:cut-instead-of-drawn",
    "storage/rounded.py",
    "(_bits(x) + (bits & 0xFFFF))",
    "_bits(x)",
    "test_storage.py::test_stochastic_rounding_is_right_in_the_mean",
)
fault(
    "storage:half-the-subnormals",
    "storage/rounded.py",
    "torch.where(size < SMALLEST_NORMAL, subnormal, normal)",
    "normal",
    "test_storage.py::test_subnormal_float16_is_rounded_with_random_bits_too",
)
fault(
    "storage:master-rounded-down",
    "storage/parameters.py",
    "return ((bits + 0x8000) & -0x10000).view",
    "return (bits & -0x10000).view",
    "test_storage.py::test_split_parameters_are_a_float32_master",
)
fault(
    "storage:compensation-lost",
    "storage/parameters.py",
    "return param + states[0]",
    "return param",
    "test_storage.py::test_compensation_carries_what_rounding_cuts_off",
)
fault(
    "storage:small-values-are-zero",
    "storage/blocks.py",
    "code = torch.where((root > 0) & (code < 1), 1.0, code)",
    "code = code * 1.0",
    "test_storage.py::test_what_a_root_divides_by_is_not_zero",
)
fault(
    "storage:signed-taken-for-unsigned",
    "storage/signs.py",
    '"sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),',
    '"sub": lambda a, b: (a[0], a[1]),',
    "test_storage.py::test_a_difference_may_be_negative",
)
fault(
    "storage:one-seed-for-all",
    "rules/trace.py",
    "tracer.noise(lambda: (arguments[SEED], states[STEP]))",
    "tracer.noise(lambda: (0.0, states[STEP]))",
    "test_storage.py::test_stochastic_rounding_is_right_in_the_mean",
)
fault(
    "rules:mixer-of-another",
    "rules/random.py",
    "0x7FEB352D",
    "0x7FEB352B",
    "test_random.py::test_the_mixer_is_the_published_one",
)
fault(
    "rules:steps-share-their-bits",
    "rules/random.py",
    "mixed(mixed(low ^ first) ^ second ^ high)",
    "mixed(mixed(low ^ first) ^ high)",
    "test_random.py::test_bits_are_the_same_in_whole_numbers",
    "test_random.py::test_streams_are_uniform_and_have_nothing_to_do_with_each_other",
)
CODECS, MATRICES = (
    "test_codecs.py::test_a_value_becomes_the_nearest_of_the_map",
    "test_menu_matrices.py::test_fifty_steps_are_the_authors",
)
fault("storage:dynamic-rounded-down", "storage/dynamic.py", "[0.2] * (decades - 1)", "[0.5] * (decades - 1)", CODECS)
fault("kernels:looked-up-one-off", "cpp/lookups.py", "turned = first + 127", "turned = first + 126", CODECS)
fault("kernels:edge-of-an-octave", "cpp/lookups.py", "sum(edge <= 2.0**octave", "sum(edge < 2.0**octave", CODECS)
fault("storage:float8-cut", "storage/float8.py", "(bits + ((1 << (PLACES - 1)) - 1) + ((bits >> PLACES) & 1))", "bits", CODECS)
fault(
    "storage:float8-loses-the-small",
    "storage/float8.py",
    "least = torch.where(size > 0, 1.0, 0.0)",
    "least = 0.0 * size",
    "test_codecs.py::test_what_is_not_finite_stays_at_its_element",
    CODECS,
)
fault(
    "storage:another-rounding-unsaid",
    "step/states.py",
    "        _check_left_over(traced, param, state)\n",
    "",
    "test_storage_attacks.py::test_what_another_rounding_kept_is_neither_used_nor_lost_unsaid",
)
fault(
    "storage:codes-of-another-shape",
    "step/precision.py",
    "if not storage.fits(values, before, after, param):",
    "if False:",
    "test_storage_attacks.py::test_codes_of_another_parameter_are_refused",
)
fault(
    "storage:square-matrices-in-codes",
    "storage/choosing.py",
    "(tuple(param.shape), _unequal(param.shape))",
    "(tuple(param.shape),)",
    "test_never_negative.py::test_matrices_of_dimensions_are_no_codes_in_square_parameters_either",
)
fault("storage:four-bits-lose-the-largest", "storage/four_bits.py", "has_zero=True), most)", "has_zero=True), 6.0)", CODECS)
fault(
    "storage:four-bits-unmarked",
    "storage/four_bits.py",
    "    special = torch.where(codes == 8, torch.nan, torch.where(size > 6, infinite, finite))\n",
    "    special = finite\n",
    "test_codecs.py::test_what_is_not_finite_stays_at_its_element",
)
fault(
    "storage:least-size-forgotten",
    "storage/choosing.py",
    "reason = codec.objection(param, group.get(MIN_NUMEL))",
    "reason = codec.objection(param, None)",
    "test_codecs.py::test_small_parameters_are_kept_in_blocks_where_that_is_asked",
)
fault(
    "storage:codes-taken-for-unsigned",
    "storage/__init__.py",
    "if not CODECS[codec].signed:",
    "if False:",
    "test_codecs.py::test_codes_without_a_sign_are_for_states_that_are_never_negative",
)
fault("algorithms:soap-turned-the-other-way", "published/soap.py", "along(update, Q, back=True)", "along(update, Q)", MATRICES)
fault("algorithms:soap-first-step-taken", "published/soap.py", "if not plain and first:", "if False and first:", MATRICES)
fault(
    "optimizer:slow-weights-never-due",
    "lookahead.py",
    "every={**rule.every, DUE: (STEPS, 0)}",
    "every={**rule.every, DUE: (STEPS, 1)}",
    "test_lookahead.py::test_against_the_paper",
)
fault(
    "optimizer:slow-weights-all-the-way",
    "lookahead.py",
    "slow + alpha * (new - slow)",
    "new + 0 * alpha",
    "test_lookahead.py::test_against_the_paper",
)
fault(
    "rules:draws-alike",
    "rules/noise.py",
    "        self._draws += 1\n",
    "        self._draws += 0\n",
    "test_noise.py::test_steps_parameters_and_draws_differ",
    "test_noise.py::test_the_noise_is_the_hash",
)
