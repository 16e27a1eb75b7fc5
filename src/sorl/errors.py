"""Exceptions whose message is for the user: wrong input, or a process that was lost."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence: what is wrong, where, and what to do about it. The command
    line prints it without a traceback and exits with code 2.
    """


class WorkerError(RuntimeError):
    """A worker process died, or what it ran raised an exception; what was done is kept.

    The command line prints the message without a traceback and exits with code 1.
    """
