"""Windows with pictures, where there is a display."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["has_display", "show"]

_WINDOWS = """
import sys
import cv2
for path in sys.argv[1:]:
    cv2.imshow(path, cv2.imread(path))
    cv2.waitKey()
    cv2.destroyAllWindows()
"""


def has_display() -> bool:
    """Whether a window can be opened, judged by the environment variables."""
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def show(paths: Sequence[Path]) -> None:
    """Open a window with one picture after the other until a key is pressed, where that works."""
    # In a process of its own: Qt aborts the one it is in where DISPLAY leads nowhere.
    command = [sys.executable, "-c", _WINDOWS, *map(str, paths)]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        print("No window: the display does not answer, or this OpenCV has none (headless)")
