"""Kill a process at a chosen operation on files: what a crash at any moment leaves behind."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_until(work: Callable[[], None], folder: Path, fatal: int | None) -> int:
    """Run in a forked process that kills itself before file operation number `fatal` on a folder.

    Returns:
        With `fatal` None the number of operations; else 0.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            count = _watched(folder, fatal)
            work()
            os.write(write, str(count[0]).encode())
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if fatal is None:
        assert os.waitstatus_to_exitcode(status) == 0
        return int(text)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return 0


def _watched(folder: Path, fatal: int | None) -> list[int]:
    """Count operations on files below a folder; the list holds the count."""
    count, home = [0], os.fspath(folder)

    def tick(*paths: Any) -> None:
        if any(isinstance(path, str | os.PathLike) and os.fspath(path).startswith(home) for path in paths):
            if count[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            modes = [*arguments[1:2], keywords.get("mode", "r")]
            writes = name != "open" or any(set("wax+") & set(str(mode)) for mode in modes)
            if writes and "tensorboard" not in str(arguments[0]):
                tick(*arguments[:2])
            return real(*arguments, **keywords)

        setattr(owner, name, watched)

    for name in ("replace", "link", "unlink", "rename"):
        wrap(os, name)
    wrap(Path, "open")
    wrap(builtins, "open")
    return count
