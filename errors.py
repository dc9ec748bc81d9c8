"""The one error that a user's input can cause."""


class InputError(Exception):
    """Something the user can mend; the message is one line: which file, what is wrong, what to do."""
