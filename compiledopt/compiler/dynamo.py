"""What a step asks of Dynamo while it is traced. Private API of torch, tried on 2.11.0 and 2.13.0."""

from __future__ import annotations

import sys


def wants_whole_graph() -> bool:
    """Asked while Dynamo traces: whether the user said fullgraph=True, or error_on_graph_break. False where that cannot be
    found out; a graph break at the step then raises Dynamo's own error, which says so."""
    try:
        translator = sys.modules["torch._dynamo.symbolic_convert"].InstructionTranslator.current_tx()
        return bool(translator.one_graph or getattr(translator, "error_on_graph_break", False))
    except (AttributeError, KeyError, TypeError):
        return False


# What torch.compiler.assume_constant_result does, without importing Dynamo: the answer is a constant of the graph.
wants_whole_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
