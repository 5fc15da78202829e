"""The one error that is the user's to fix."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what was got, what is needed, what to do.

    Entry points print the message alone and exit with status 2; any other exception is a defect
    of ours and keeps its traceback.
    """
