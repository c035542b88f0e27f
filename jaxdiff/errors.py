"""The errors that users see, each with the exit code that the experiment binaries return for it."""


class JaxdiffError(Exception):
    """Base of every error that jaxdiff raises on purpose. `exit_code` is what a binary exits with."""

    exit_code = 1


class ConfigError(JaxdiffError, ValueError):
    """A flag, configuration key or argument is wrong; raised before anything slow starts."""


class CheckFailed(JaxdiffError):
    """A run finished, but a check that it was asked to make did not hold."""

    exit_code = 3


class NonFiniteError(JaxdiffError, FloatingPointError):
    """A state became NaN or infinite; the message names the step."""

    exit_code = 4


class MissingDataError(JaxdiffError, ValueError):
    """A data set, clip or part of one is absent, unreadable or too short."""

    exit_code = 5


class CheckpointError(JaxdiffError, ValueError):
    """A checkpoint folder cannot be loaded; the message lists every problem that was found."""

    exit_code = 5


class Resumable(JaxdiffError):
    """The run stopped early, and the same command continues it."""

    exit_code = 75


class StoreWriteError(Resumable, OSError):
    """Captured data could not be stored: disk full, no permission, a stalled file system.

    An `OSError` with its `errno`; finished clips are intact.
    """
