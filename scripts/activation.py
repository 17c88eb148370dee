"""Say how to activate the environment, and exit with 2: for a script whose Python lacks Champion's packages.

A script that is started by its file finds this module beside it, whatever is installed. It needs nothing else.
"""

import shlex
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_FILE = ".venv/bin/activate"
_NAMED = _FILE if Path.cwd() == _ROOT else shlex.quote(str(_ROOT / _FILE))
_FIRST = "" if (_ROOT / _FILE).is_file() else "run `make repro`, which sets up .venv, and then "

sys.stderr.write(f"ERROR this Python ({sys.executable}) lacks Champion's packages; {_FIRST}activate them with "
                 f"`. {_NAMED}` and run it again\n")
sys.exit(2)
