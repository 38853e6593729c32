"""The exception for mistakes that a user can correct."""


class UserError(Exception):
    """A mistake that a user can correct. The message is one line that names it and the remedy.

    The command line prints `error: ` and this line instead of a traceback, and exits with code 2.
    """
