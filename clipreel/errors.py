"""The exceptions that users see: a message with the offending value, what is allowed, and the next step."""


class ClipreelError(Exception):
    """A mistake or a failure that the user can act on; the command line prints it as one line without a traceback."""


class NotHere(ClipreelError):
    """A model of the hub that is not on this machine, where no download is allowed."""
