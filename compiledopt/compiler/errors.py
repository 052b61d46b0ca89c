"""Why something cannot be compiled."""


class CompileError(RuntimeError):
    """The compiled executor cannot be had here; the message is the reason, which a fallback shows to the user."""
