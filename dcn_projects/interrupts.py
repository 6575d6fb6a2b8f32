"""
Ctrl-C ends the programs of this project with one line and the exit code that shells give. They
import this module before all others, as those take seconds, in which a user may have second
thoughts.
"""

import sys

from dcn_projects.errors import exit_interrupted

_of_errors = sys.excepthook


def _hook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        exit_interrupted()
    _of_errors(kind, error, traceback)


sys.excepthook = _hook
