"""The errors that a user's input can cause."""


class InputError(Exception):
    """Something the user can mend; the message is one line: which file, what is wrong, what to do."""

    status = 2  # of the command that ends with it


class UnreadableError(InputError):
    """A file of one picture that cannot be read: inference goes on without the picture."""


class SkippedError(InputError):
    """All is done but for pictures that could not be read."""

    status = 3
