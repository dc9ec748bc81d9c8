"""The errors that a user's input can cause."""


class InputError(Exception):
    """Something the user can mend; the message is one line: which file, what is wrong, what to do."""

    status = 2  # of the command that ends with it


class UnreadableError(InputError):
    """A file of one image that cannot be read: inference goes on without the image."""


class SkippedError(InputError):
    """All is done but for images that could not be read."""

    status = 3
