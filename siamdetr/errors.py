"""Every error class that a user can meet."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that cannot be read or written; the text says which, why and what to do."""


class SettingsError(ValueError):
    """A setting that does not exist or is invalid; the message says which, its origin and the remedy."""


class FolderInUseError(SettingsError):
    """Another program writes into a folder; the text says which, and what to do."""


class MissingPackageError(ValueError):
    """A package of an extra that is not installed; the text says which, and how to install it."""


class DataError(ValueError):
    """A data set that cannot be used as asked; the text says where, what, and what helps."""


class ImageError(ValueError):
    """An image that cannot be used; the text says which, why and what to do."""


class UnreadableImageError(DataError, ImageError):
    """An image file that cannot be opened; the text names the file and the cause.

    Args:
        text: for a person.
        reason: "missing" (also a file that may not be read), "empty", "too large", "unknown format" or "damaged".
    """

    def __init__(self, text: str, reason: str = "damaged") -> None:
        super().__init__(text)
        self.reason = reason


class VideoError(ValueError):
    """A video that cannot be opened; the text says which, why and what to do."""


class WeightFileError(ValueError):
    """A weight file that cannot be read, or that would have to run code to be read."""


class OfficialCheckpointError(ValueError):
    """A checkpoint that contradicts its family or options.

    The message says which tensor, got, expected and the remedy.
    """


class HubError(ValueError):
    """A Hugging Face repository or folder that cannot be fetched, read or sent.

    The text says why and what to do.
    """


class StudyError(ValueError):
    """A study that cannot be run as asked; the text says why and what to do."""


class EngineError(ValueError):
    """Tasks cannot run in the chosen engine; the message says why and the remedy."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the text names it, the step and the images."""


class LoadingError(RuntimeError):
    """The data loader's processes failed: no shared memory or open files left, or too slow.

    The text says what helps.
    """


class ExportError(ValueError):
    """An export that failed, or an exported file that cannot be used.

    The text says which, why and what to do.
    """


class ServeError(ValueError):
    """A server that cannot start as asked; the text says why and what to do."""


class OutputError(ValueError):
    """An output that would fall on what the command reads, or on what is there already.

    The text says which option, on what, and what to do.
    """


class NonFiniteOutputError(ValueError):
    """A model whose scores or boxes are not numbers; the text says where and what to do."""
