"""The effect of a kill: copies of a folder from before every operation on its files."""

from __future__ import annotations

import builtins
import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def in_own_processes(tasks: Sequence[Callable[[], object]], *, at_once: int = 1) -> None:
    """Run each task in a fork of this process, which has imported everything."""
    running: list[int] = []
    for task in tasks:
        if len(running) == at_once:
            _finish(running.pop(0))
        running.append(_start(task))
    for process in running:
        _finish(process)


def _start(task: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def _finish(process: int) -> None:
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def remains(work: Callable[[], None], folder: Path, into: Path) -> list[Path]:
    """Work in a process of its own, and copy the folder before every operation on its files.

    SIGKILL leaves what the operating system has been given: the files as they are, and no lock. So does a copy in which
    hard links stay hard links. What the process still holds in its own memory is in neither.

    Args:
        folder: that the work writes into; tensorboard's events do not count.
        into: folder of the copies.
    Returns:
        The copies, first to last; one where operations changed nothing.
    """
    into.mkdir()

    def watched() -> None:
        _watch(folder, into)
        work()

    in_own_processes([watched])
    return sorted(into.iterdir())


def _watch(folder: Path, into: Path) -> None:
    home, busy, count, last = os.fspath(folder), False, 0, None

    def before(*paths: Any) -> None:
        nonlocal busy, count, last
        names = [os.fspath(path) for path in paths if isinstance(path, str | os.PathLike)]
        if busy or "tensorboard" in names[0] or not any(name.startswith(home) for name in names):
            return
        busy = True
        if (state := _state(folder)) != last:
            _copy(folder, into / f"{count:03d}")
            count, last = count + 1, state
        busy = False

    def wrap(owner: Any, name: str, writes: Callable[..., bool] = lambda *_, **__: True) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            if isinstance(arguments[0], str | os.PathLike) and writes(*arguments, **keywords):
                before(*arguments[:2])
            return real(*arguments, **keywords)

        setattr(owner, name, watched)

    for name in ("replace", "link", "unlink", "remove", "rename", "mkdir", "rmdir"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    wrap(os, "open", lambda path, flags, *_, **__: bool(flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)))
    for owner in (Path, builtins):
        wrap(owner, "open", lambda path, mode="r", *_, **__: bool(set("wax+") & set(mode)))


def _state(folder: Path) -> dict[str, bytes | None]:
    """Contents of all files; a folder has none."""
    paths = (path for path in folder.rglob("*") if "tensorboard" not in path.parts)
    return {os.fspath(path): path.read_bytes() if path.is_file() else None for path in paths}


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, if it exists, and keep its hard links."""
    target.mkdir()
    seen: dict[int, Path] = {}
    for path in sorted(source.rglob("*")):
        new = target / path.relative_to(source)
        if path.is_dir():
            new.mkdir()
        elif (inode := path.stat().st_ino) in seen:
            os.link(seen[inode], new)
        else:
            seen[inode] = new
            shutil.copy2(path, new)
