"""Check that OpenCV has its extra modules, which EdgeBoxes and Selective Search need."""

from __future__ import annotations

from siamdetr.errors import DataError
from siamdetr.images import opencv as cv2
from siamdetr.system.installed import installed

PACKAGE = "opencv-contrib-python-headless"
_WITH_CONTRIB = (PACKAGE, "opencv-contrib-python")
_WITHOUT = ("opencv-python", "opencv-python-headless")


def require_contrib() -> None:
    """Check that OpenCV has its module `ximgproc`.

    All packages of OpenCV install into one folder: a later one without the extra modules hides them.

    Raises:
        DataError: it has not; the text names the installed packages and the remedy.
    """
    if hasattr(cv2, "ximgproc") and hasattr(cv2.ximgproc, "createEdgeBoxes"):
        return
    there = installed((*_WITH_CONTRIB, *_WITHOUT))
    hiding = [name for name in there if name in _WITHOUT]
    why = f"{' and '.join(hiding)} hides it" if hiding else "it is not part of what is installed"
    remove = f"pip uninstall -y {' '.join(there)} && " if there else ""
    raise DataError(
        f"OpenCV {cv2.__version__} has no module ximgproc, which computes EdgeBoxes and Selective Search: {why} (installed: "
        f"{', '.join(there) or 'no package of OpenCV'}). {remove}pip install --force-reinstall {PACKAGE}; or take random proposals, "
        "which need no OpenCV"
    )
