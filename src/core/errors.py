"""What can go wrong, by exit code. A message says where, what, and what to do next, in one line."""


class PipelineError(Exception):
    """Base of every failure that has a known cause.

    `code` is the process exit code, `result` the word on the PROMOTE line.
    """

    code, result = 1, "failed"


class InvalidParams(PipelineError):
    """A flag, parameter, environment variable or token setting is wrong."""

    code, result = 2, "invalid"


class InvalidInput(PipelineError):
    """An input file is missing, malformed, or belongs to another model."""

    code, result = 3, "invalid"


class Undecided(PipelineError):
    """History or registry could not be read soundly, so nothing may be concluded from it."""

    code, result = 4, "undecided"


class IntegrityError(PipelineError):
    """Bytes are not what they must be: an adapter, a merge, a release or a ledger fails its check."""

    code, result = 5, "failed"


class HubError(PipelineError):
    """The Hub failed before the commit point: nothing was promoted."""

    code, result = 6, "failed"


class Refused(PipelineError):
    """Policy forbids it: a blocked model, or a base that is not allowed."""

    code, result = 7, "refused"


class RunAgain(PipelineError):
    """Another process was faster or holds a lock, or projections are pending: the same command again settles it."""

    code, result = 75, "run_again"
