"""What deliberately differs from torch.optim, each with its reason and the test that shows it: docs/compatibility.md is made
of this and of the promises in tests/contract.py (python docs/generate.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """what: the case; torch, here: what happens; why: the reason; shown: file::test, under tests/."""

    what: str
    torch: str
    here: str
    why: str
    shown: str


WORKS_HERE = [
    Difference(
        "a tensor `lr` or `betas` with `foreach=True` and without `capturable`",
        "ValueError",
        "works",
        "numbers are read once per step, whatever they are",
        "test_optimizer.py::test_torchs_schedulers_and_tensor_lr_in_place",
    ),
    Difference(
        "`capturable` in SGD, Adagrad, Adafactor and Muon",
        "no such option",
        "works",
        "their numbers are entries of a table like any other",
        "test_pages.py::test_the_table_is_true",
    ),
    Difference(
        "`capturable=True` on the CPU",
        "AssertionError at the step",
        "works",
        "the step is the same",
        "test_parity.py::test_error_against_the_oracle",
    ),
    Difference(
        "`fused=True` with complex parameters",
        "RuntimeError",
        "works",
        "a complex number is two reals",
        "test_parity.py::test_complex",
    ),
    Difference(
        "GradScaler with Adamax, NAdam, ...",
        "the scaler unscales before the step",
        "with `fused=True` or `compiled=True` read by the step itself, as torch's fused ones do",
        "one pass less",
        "test_amp.py::test_as_if_there_were_no_scale",
    ),
    Difference(
        "`differentiable=True` with `amsgrad` over two steps, or SGD with dampening",
        "fails in backward",
        "works",
        "the rule is pure",
        "test_differentiable.py::test_gradcheck",
    ),
    Difference(
        "`differentiable=True`, SGD's first momentum",
        "cut from the graph",
        "in the graph",
        "it is a function of the gradient, checked against finite differences",
        "test_differentiable.py::test_gradcheck",
    ),
    Difference(
        "`lr`",
        "a number or tensor",
        "also a schedule, computed in the step",
        "nothing is left to call; [migrate-from-torch.md](migrate-from-torch.md)",
        "test_around.py::test_all_three_against_torch",
    ),
    Difference(
        "`max_grad_norm`, `ema_decay`",
        "no such options",
        "clipping and an average inside the step",
        "gradients are not modified; [training-loop.md](training-loop.md)",
        "test_around.py::test_all_three_against_torch",
    ),
    Difference(
        "`cautious`, `corrected_decay`, `update_clipping`, `gradient_centralization`, `grokfast`, `skip_nonfinite`",
        "no such options",
        "transformations of any rule",
        "timm and others write them into each algorithm; [training-loop.md](training-loop.md)",
        "test_update.py::test_against_torch",
    ),
    Difference(
        "`zero_grad` and `step` in `torch.compile(fullgraph=True)`",
        "`zero_grad` refuses to be traced; a scheduler hides `step`",
        "one graph",
        "a step is an operator there",
        "test_dynamo.py::test_fullgraph",
    ),
    Difference(
        "ConstantLR with `factor=0`, OneCycleLR with a first phase of no length",
        "ZeroDivisionError",
        "work",
        "the rate is a function of the step",
        "test_lr_scheduler.py::test_what_torch_divides_by_zero",
    ),
    Difference(
        "`amsgrad` switched on between steps",
        "KeyError",
        "starts from zero",
        "the largest value so far is the first",
        "test_optimizer.py::test_options_may_change_between_steps",
    ),
    Difference(
        "LBFGS with parameters that are not contiguous, or after deepcopy or pickle",
        "RuntimeError, AttributeError",
        "works",
        "it flattens what it is given",
        "test_contract.py::test_kept_by_torch_and_here",
    ),
    Difference(
        '`LBFGS(maximize=True)`, `Muon(adjust_lr_fn="spectral_unclamped")`, a step of LBFGS with an empty group',
        "since torch 2.14",
        "with any torch",
        "a class has one signature",
        "test_not_elementwise.py::test_lbfgs_climbs",
    ),
    Difference(
        "empty parameters in Adafactor",
        "ZeroDivisionError",
        "nothing to do",
        "a mean of nothing is not needed",
        "test_not_elementwise.py::test_error_against_the_oracle",
    ),
]
DIFFERS = [
    Difference(
        "a negative `lambd` or `alpha` in ASGD",
        "refused since torch 2.15, taken before",
        "refused with any torch, in its words",
        "such a rate or decay grows",
        "test_signature.py::test_what_is_refused_and_in_which_order_is_as_in_torch",
    ),
    Difference(
        "`functional`, updates of lists of tensors (since torch 2.15)",
        "eager, one algorithm a function",
        "torch's own, as `compiledopt.functional` where torch has it",
        "there is no optimizer that could keep a plan; a class compiles",
        "test_signature.py::test_all_that_torch_optim_has_is_here",
    ),
    Difference(
        "several threads step one optimizer at once",
        "updates are lost, silently",
        "RuntimeError for those that come while one steps",
        "a step is taken whole or not at all",
        "test_between_steps.py::test_threads_stepping_one_optimizer",
    ),
    Difference(
        "bias corrections",
        "float32 where `lr` or `betas` is a float32 tensor",
        "float64 always",
        "less error (pytorch#88173), no cost",
        "test_parity.py::test_error_against_the_oracle",
    ),
    Difference(
        "float16 and bfloat16",
        "each operation rounds",
        "float32 arithmetic, one rounding at the store",
        "less error, in every executor",
        "test_parity.py::test_error_against_the_oracle",
    ),
    Difference(
        "schedulers in their recursive form",
        "the factor of one step",
        "the quotient of the closed form at two steps",
        "equal to 1e-12; one definition for the class, the value at any step and the device",
        "test_lr_scheduler.py::test_against_torch",
    ),
    Difference(
        "a scheduler wraps `optimizer.step`",
        "it does",
        "it finds a `step` that tells by itself whether it was called",
        "Dynamo refuses to trace the wrapper",
        "test_lr_scheduler.py::test_warnings_and_the_end_of_one_cycle",
    ),
    Difference(
        "a state_dict of another optimizer, or with states of other shapes",
        "loads; a step fails later, or does not",
        "ValueError that names the first mismatch, before anything changes",
        "never half a load",
        "test_state.py::test_a_state_that_does_not_fit_changes_nothing",
    ),
    Difference(
        "tensors of a loaded state_dict",
        "shared with the caller's",
        "copied",
        "a step of one optimizer would change the states of the other",
        "test_state.py::test_loading_shares_no_memory",
    ),
    Difference(
        "a step that raises",
        "what came before the error is updated",
        "parameters and states as before the step",
        "never half an update",
        "test_failures.py::test_bad_gradients",
    ),
    Difference(
        'memory of `state["step"]`',
        "a tensor each",
        "views of one vector",
        "fewer cache lines; in-place changes of one are still changes of that one",
        "test_state.py::test_state_is_torchs",
    ),
    Difference(
        "a state saved in another memory layout",
        "kept",
        "re-laid at the first step (compiled executor)",
        "so that one pass over memory serves",
        "test_layouts.py::test_every_layout_in_one_optimizer",
    ),
    Difference(
        "SparseAdam's `step`",
        "a number",
        "a tensor, as in every other algorithm",
        "one kind of state; torch's number is taken when it is loaded",
        "test_not_elementwise.py::test_sparse_adam_takes_torchs_state",
    ),
    Difference(
        "LBFGS, where the closure raises",
        "parameters stay where the last evaluation left them",
        "parameters and state as before the step",
        "never half an update",
        "test_not_elementwise.py::test_lbfgs_goes_back_where_its_closure_raises",
    ),
    Difference(
        "LBFGS, a second group",
        "refused at the step",
        "refused by `add_param_group`",
        "earlier",
        "test_not_elementwise.py::test_torchs_error_inputs",
    ),
    Difference(
        "LBFGS's `al` in its state",
        "scratch of the recursion",
        "not there",
        "it is no state; torch makes it where it is missing",
        "test_not_elementwise.py::test_lbfgs_exchanges_states",
    ),
    Difference(
        "Muon's products",
        "bfloat16",
        "bfloat16 where the hardware multiplies that, else float32",
        "bfloat16 products without such hardware are slower by far, and less precise",
        "test_not_elementwise.py::test_products_are_in_the_dtype_that_is_fast",
    ),
    Difference(
        "Adafactor",
        "reads norms on the host",
        "reads nothing",
        "capturable; 1/√max(r·c, ε₁²) is computed as min(1/√r · 1/√c, 1/ε₁)",
        "test_not_elementwise.py::test_error_against_the_oracle",
    ),
    Difference(
        "Adafactor's ε₁ of None, with parameters of several dtypes in one group",
        "the epsilon of the first parameter's dtype, for all",
        "each parameter's own",
        "bfloat16's is 65,536 times that of float32: the update would depend on the order of the parameters",
        "test_not_elementwise.py::test_adafactors_epsilon_is_its_dtypes",
    ),
    Difference(
        "ASGD's `ax` of an infinite parameter, while μ = 1",
        "infinite: it is copied",
        "NaN",
        "a + μ·(θ − a) is one formula for every μ, and ∞ − ∞ has no value; later torch's is NaN as well",
        "test_parity.py::test_asgds_average_of_an_infinite_parameter",
    ),
    Difference(
        "memory of foreach",
        "a list of temporaries as large as the model",
        "chunks of at most 64 MiB, 4 on the CPU; Adafactor and Muon stacks of 16 there",
        "what stays in the cache is faster",
        "test_memory.py::test_extra_memory",
    ),
    Difference(
        "Adafactor and Muon on DTensors (FSDP2)",
        "each operation distributed",
        "gathered, updated whole, each process keeps its shard",
        "the result is that of one process",
        "test_distributed.py::test_two_processes",
    ),
    Difference(
        "a step under a `TorchDispatchMode` of one's own",
        "as without it",
        "operators instead of the compiled kernel, with one warning; without it under FakeTensorMode, torch.func and tracers",
        "a mode does not see what native code writes",
        "test_modes.py::test_a_mode_sees_every_write_and_the_numbers_are_the_same",
    ),
    Difference(
        "states whose dtype is not their parameter's, after `load_state_dict`",
        "cast to the parameter's dtype, all but `step`",
        "as the rule makes them: a float32 master, a mask, NAdam's `mu_product`",
        "what was rounded at a load would not go on as it was",
        "test_state.py::test_states_keep_the_dtype_that_their_rule_makes",
    ),
    Difference(
        "parameters cast after some steps (`model.half()`, `model.double()`)",
        "RuntimeError in Adam's kin, whose states and gradients differ in dtype then; SGD and Adagrad go on",
        "every algorithm goes on; states keep their dtype, and the wider of both computes",
        "an operand is converted as it is read",
        "test_between_steps.py::test_parameters_cast_between_steps",
    ),
    Difference(
        "torch's wrapper around `step` (its profiler range, its look for hooks)",
        "at every step",
        "where there is a hook or a profiler",
        "it takes as long as a small step",
        "test_optimizer.py::test_what_stands_around_a_step_is_there_where_it_is_seen",
    ),
    Difference(
        "gradients after a step of GradScaler with `fused=True`",
        "divided by the scale, in place",
        "as backward left them",
        "a step never writes a gradient: it would be one more stream of memory; `scaler.unscale_()` before divides them",
        "test_habits.py::test_a_scaled_step_leaves_its_gradients_alone",
    ),
    Difference(
        "SGD on integer parameters",
        "works where `lr` and every other number is whole",
        "TypeError",
        "a rate below 1 rounds to nothing; kernels are for floating point",
        "test_habits.py::test_integer_parameters_are_refused",
    ),
    Difference(
        "`isinstance(optimizer, torch.optim.AdamW)`",
        "True",
        "False; `torch.optim.Optimizer` is the base",
        "those who look at the type compare it, and registries would find each name twice; [ecosystem.md](ecosystem.md)",
        "test_ecosystem.py::test_no_instance_of_torchs_classes",
    ),
    Difference(
        "`torch.optim.Optimizer.__subclasses__()`, walked down",
        "finds its classes",
        "finds torch's and yours, not this library's",
        "registries know classes by bare names; [ecosystem.md](ecosystem.md)",
        "test_ecosystem.py::test_walking_down_from_torchs_optimizer_finds_each_of_torchs_names_once",
    ),
    Difference(
        '`group["compiled"]`',
        "not there",
        "there",
        "which executor; torch ignores it when it loads a state from here",
        "test_state.py::test_from_torch_and_back",
    ),
]
