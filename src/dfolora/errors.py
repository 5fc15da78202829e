"""What goes wrong, by who can mend it; all else that is raised is a defect of ours."""


class UserError(ValueError):
    """A configuration, file or model that the user gave is wrong.

    The message says what was got, what is needed and what to do. Entry points print it without a
    traceback.
    """


class ResourceError(Exception):
    """The machine or the store does not give what is needed: disk, memory, a connection.

    The message says what is missing and what is kept. Entry points print it without a traceback.
    """
