"""Every error edgekd raises on purpose, each with its exit code.

A message says what happened, then what to do. The command line prints it on stderr and exits with ``exit_code``;
anything else that escapes is a bug and exits with 1 and a traceback.
"""


class EdgekdError(Exception):
    """Base of the family; never raised itself."""

    exit_code = 1


class UsageError(EdgekdError):
    """The command or its arguments make no sense (also what Typer itself exits with)."""

    exit_code = 2


class TargetError(EdgekdError):
    """An unknown target, a target file that does not load, or a target that contradicts itself."""

    exit_code = 3


class AssetError(EdgekdError):
    """A model or data set cannot be fetched, is not what its hash promises, or is unsafe to open."""

    exit_code = 4


class DataError(EdgekdError):
    """Data that cannot be used: a missing column, an unknown label, an empty split, a bad calibration id."""

    exit_code = 5


class TrainingError(EdgekdError):
    """Training cannot go on: a loss that is not finite, a loss that lacks its teacher signal."""

    exit_code = 6


class ExportError(EdgekdError):
    """The graph is not what was promised: a float leftover, a parity failure, a broken pass condition."""

    exit_code = 7


class BenchError(EdgekdError):
    """A measurement could not be taken at all (a noisy one is a row marked INVALID, not an error)."""

    exit_code = 8


class BudgetError(EdgekdError):
    """A budget is not met (``report --check``), or cannot be met by construction (``plan``)."""

    exit_code = 9


class StoreError(EdgekdError):
    """The run store cannot be written or read: a full disk, another run holding the lock."""

    exit_code = 10


class BundleError(EdgekdError):
    """A shipped bundle is missing, incomplete or altered."""

    exit_code = 11


class MissingDependencyError(EdgekdError):
    """An optional package is not installed; the message holds the command that installs it."""

    exit_code = 12


class HostError(EdgekdError):
    """A device cannot be reached: no such host, nobody listens, the key is refused."""

    exit_code = 13


class HostLostError(EdgekdError):
    """The connection to a device broke while it measured; what was measured until then is kept."""

    exit_code = 14


class HostUnfitError(EdgekdError):
    """A device cannot measure: another architecture than the bundle's, an old Python, too little memory or disk."""

    exit_code = 15


INTERRUPTED = 130
"""Exit code after ctrl-C (128 + SIGINT) or SIGTERM; the run resumes where it stopped."""
