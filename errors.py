"""The errors that a user's input can cause."""


class InputError(Exception):
    """An error that the user can fix.

    The message is one line: which file, what is wrong, what to do.
    """

    status = 2  # of the command that ends with it


class UnreadableError(InputError):
    """A file of one image that cannot be read; inference goes on without this image."""


class SkippedError(InputError):
    """The command did everything except for images that it could not read."""

    status = 3
