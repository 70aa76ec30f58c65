"""The error that a user can act on."""


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why and what would work.

    The command line prints the message without a traceback and exits with status 2.
    """
