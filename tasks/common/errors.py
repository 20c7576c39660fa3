"""The one error that is the user's to mend."""


class BadInput(ValueError):
    """Something outside the code is wrong: a file, a folder, a setting, a missing package.

    Its message is one line that says what is wrong, where, and what to do. Flows print that line
    instead of a traceback, and never retry.
    """
