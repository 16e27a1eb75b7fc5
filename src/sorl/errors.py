"""The one exception that means "the input is wrong", never "the library is broken"."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence: what is wrong, where, and what to do about it. The command
    line prints it without a traceback and exits with code 2.
    """
