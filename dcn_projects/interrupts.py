"""
Ctrl-C ends the programs of this project with one line and the exit code that shells give. They
import this module before all others, as those take seconds, in which a user may have second
thoughts.
"""

import signal
import sys

from dcn_projects.errors import exit_interrupted, interrupt, was_interrupted

_of_errors = sys.excepthook


def _hook(kind, error, traceback):
    if was_interrupted(error):
        exit_interrupted()
    _of_errors(kind, error, traceback)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
    signal.signal(signal.SIGINT, interrupt)
sys.excepthook = _hook
