"""Errors, by who can fix them; any other exception is an internal error."""


class UserError(ValueError):
    """A configuration, file or model given by the user is wrong.

    The message says what was given, what is needed and what to do. Entry points print it without a
    traceback.
    """


class ResourceError(Exception):
    """The machine or the store lacks a resource: disk space, memory, a connection.

    The message says what is missing and what is kept. Entry points print it without a traceback.
    """
