"""The errors of cxu: one base class, a subclass per cause, each with the exit code the command line gives it.

A message says what went wrong, which value did it, what was expected, and what to do next.
"""

from __future__ import annotations


class CxuError(Exception):
    """Base of every error that cxu raises on purpose.

    ``exit_code`` is what the command line exits with: 1 failed, 2 usage, 3 some items failed, 130 interrupted.
    """

    exit_code = 1


class UsageError(CxuError, ValueError):
    """The request itself is wrong: an unknown name, a contradiction between options, a missing choice."""

    exit_code = 2


class FormatError(CxuError, ValueError):
    """A file's content is not what its format says."""


class CodecError(FormatError):
    """Run-length or landmark text that cannot be decoded."""


class DuplicateIdError(CxuError, ValueError):
    """The same image id stands twice where it may stand once."""


class MissingInputError(CxuError, FileNotFoundError):
    """A file, table or selection that a command needs does not exist."""

    exit_code = 2


class HubError(CxuError, OSError):
    """The Hub could not give what was asked for."""


class HubConnectionError(HubError, ConnectionError):
    """The Hub cannot be reached, keeps failing, or asks for a pause longer than we wait."""


class HubAccessError(HubError, PermissionError):
    """The Hub refuses access (401, 403)."""


class HubNotFoundError(HubError, FileNotFoundError):
    """The repository, revision or file does not exist on the Hub (404), or no file matches."""


class IntegrityError(HubError):
    """A downloaded file is truncated or altered: its size or hash is not the published one."""


class DiskSpaceError(CxuError, OSError):
    """Not enough free space for what is about to be written."""


class OutputExistsError(UsageError, FileExistsError):
    """The output folder holds the result of a different command."""


class WorkerError(CxuError, RuntimeError):
    """A worker process died or could not be started."""


class ClusterError(CxuError, ConnectionError):
    """A Dask cluster cannot be reached, has no workers, or has other versions than this machine."""


class DeviceMemoryError(CxuError, MemoryError):
    """A device has too little memory for even one image."""


class ImageError(CxuError, ValueError):
    """An image file that cannot be read or is not what was expected."""


class MissingExtraError(CxuError, ImportError):
    """An optional dependency is not installed."""
