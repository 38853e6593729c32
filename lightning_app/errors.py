"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """A mistake with a remedy: one line that names the thing and says what to do.

    The command line prints it as `error: ...` and exits with code 2; a traceback would hide it.
    """
