"""Training checkpoints: one file of tensors, numbers and texts, written atomically, never unpickled.

SHA-256 finds damage.

The file is PyTorch's zip archive. The archive's comment holds the SHA-256 of every byte before it, so that damage
anywhere is noticed, also where no tensor lies. Files of siamdetr 0.1.0 have no such comment; theirs is checked by the
digest of the contents alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from siamdetr.errors import CheckpointError
from siamdetr.files import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from siamdetr.model_file import digest
from siamdetr.system.atomic_file import atomic_write, sweep_temporaries

STATE = "siamdetr"  # our section of the checkpoint
NORMALIZATION = "normalization"  # in it: [mean, std] of the images of the run, three values each
FORMAT_VERSION = 1
_SEAL = b"siamdetr sha256 "  # followed by 64 hexadecimal digits
_SEAL_BYTES = len(_SEAL) + 64
_MOST_VALUES = (
    5_000_000  # numbers, texts and tensors in a checkpoint; shared lists in a pickle can unfold to any number
)
_CHUNK = 2**20


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically, and keep the one before it as previous.ckpt.

    Raises:
        CheckpointError: the disk is full; the old checkpoint is intact.
    """
    path = Path(path)
    sweep_temporaries(path.parent)
    sealed = {**checkpoint, "sha256": digest(checkpoint), "sealed": True}
    if path.exists():
        _keep(path)
    atomic_write(path, lambda file: _save_sealed(sealed, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint of ours, on the CPU, verified.

    Raises:
        CheckpointError: not there, not ours, truncated, damaged or of a newer version. Nothing is ever unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    has_seal = _check_seal(path)
    try:
        _check_archive(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(checkpoint)
    except Exception as error:  # torch raises half a dozen kinds here, and none of them is ours to tell apart
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: truncated, damaged, or not a checkpoint of siamdetr ({reason}); nothing in it was executed"
        ) from error
    state = checkpoint.get(STATE) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of siamdetr; `siamdetr convert` reads official ones")
    version = state.get("format_version", 0)
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: damaged: its format version is {version!r:.40}, expected a number")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, but this siamdetr reads up to {FORMAT_VERSION}; update siamdetr"
        )
    expected, sealed = checkpoint.pop("sha256", None), checkpoint.pop("sealed", False)
    if (sealed and not has_seal) or _digest(checkpoint) != expected:
        raise CheckpointError(f"{path}: damaged: its contents do not have the SHA-256 it was written with")
    return checkpoint


def newest_valid(
    folder: str | Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest readable checkpoint of a run folder, its content, and what was wrong with newer ones.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    problems: list[str] = []
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = Path(folder) / name
        if path.exists():
            try:
                return path, read(path), problems
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError("no checkpoint can be read:\n" + "\n".join(problems))
    return None


class _SealingFile:
    """Hashes what is written, and puts the hash into the comment of the zip archive that it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha, self._held = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < 2:
            view = memoryview(self._held + bytes(view))
            self._put(view[:-2])
        else:
            self._put(memoryview(self._held))
            self._put(view[:-2])
        self._held = bytes(view[-2:])  # at the end of the archive: the length of its comment, so far 0
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Write the comment, the last part of the file."""
        self._put(memoryview(_SEAL_BYTES.to_bytes(2, "little")))
        self._file.write(_SEAL + self._sha.hexdigest().encode())

    def _put(self, data: memoryview) -> None:
        self._sha.update(data)
        self._file.write(data)


def _save_sealed(checkpoint: Mapping[str, Any], file: IO[bytes]) -> None:
    sealing = _SealingFile(file)
    torch.save(checkpoint, sealing)  # type: ignore[arg-type]  # it asks for no more than write and flush
    sealing.seal()


def _check_seal(path: Path) -> bool:
    """Check the seal of a file; returns whether it has one.

    Raises:
        CheckpointError: it is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _SEAL_BYTES))
        seal = file.read()
        if not seal.startswith(_SEAL):
            return False
        file.seek(0)
        sha, left = hashlib.sha256(), size - _SEAL_BYTES
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            sha.update(chunk)
            left -= len(chunk)
    if sha.hexdigest().encode() != seal.removeprefix(_SEAL):
        raise CheckpointError(f"{path}: damaged: its contents do not have the SHA-256 it was written with")
    return True


def _check_archive(path: Path) -> None:
    """Check that an archive unpacks to no more than its own size.

    Raises:
        ValueError: it does not; nothing was unpacked.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("not a zip archive, as torch.save writes it")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries claim more bytes than the file has")


def _check_sizes(tree: Any) -> None:
    """Check that tensors hold what they claim, and that all together have a bounded number of values.

    Raises:
        ValueError: they do not.
    """
    left, count = [tree], 0
    while left:
        value, count = left.pop(), count + 1
        if count > _MOST_VALUES:
            raise ValueError(f"it unfolds to more than {_MOST_VALUES:,} values")
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > max(1, value.untyped_storage().nbytes()):
                raise ValueError(f"a tensor claims the size {list(value.shape)} and does not hold it")
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value


def _digest(checkpoint: Mapping[str, Any]) -> str:
    try:
        return digest(checkpoint)
    except (TypeError, ValueError, RuntimeError, RecursionError):  # values that no checkpoint of ours has
        return ""


def _keep(path: Path) -> None:
    """Give the old checkpoint a second name, previous.ckpt, before the new one takes its first."""
    previous = path.with_name(PREVIOUS_CHECKPOINT)
    if previous.exists() and previous.samefile(path):  # after a kill; renaming one name to the other would do nothing
        return
    spare = path.with_name(f".{PREVIOUS_CHECKPOINT}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        spare.unlink()
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links: then there is no previous one
        return
    spare.replace(previous)
