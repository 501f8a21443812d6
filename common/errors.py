"""The one exception that the command line shows without a traceback."""


class Refused(Exception):
    """A request that cannot be served: one line that names the thing and what would work (exit status 2)."""
