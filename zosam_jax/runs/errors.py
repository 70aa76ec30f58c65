"""The error that a user can act on."""


class RunError(RuntimeError):
    """A run cannot start or go on; the message says why and what would work.

    The command line prints the message and exits with status 2, without a traceback.
    """
