"""The folder of the demo's uploads. Imports no Gradio, which reads the folder when it is imported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for uploads that no other user can read; it is deleted afterwards.

    Gradio is imported and served inside.
    """
    with tempfile.TemporaryDirectory(prefix="siamdetr-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the only way to tell Gradio; its default is one folder for all users
        yield Path(folder)
