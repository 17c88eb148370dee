"""Ctrl-C while a script still imports what it needs: one line and exit code 130. The first import of each script.

utils.process.run takes over once it is reached: from then on there may be temporary files to remove.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

_INTERRUPTED = 130


def _end(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"ERROR interrupted from the keyboard; run it again\n")
    os._exit(_INTERRUPTED)


def hand_over() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Whoever imports a script, as the tests do, keeps its own handler, and so does a job in the background.
_started = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
_is_script = _started.parent.name == "scripts"
if _is_script and importlib.util.find_spec("dotenv") is None:
    raise ModuleNotFoundError("this clone is on the path, and its packages are not")  # the script says what to do
if (_is_script or _started.name == "champion") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
