"""One line and exit code 2 for a script whose Python lacks its packages. The first import of each script.

Only in a clone: an image has one Python, and its log keeps the traceback for fix_dependencies.py.
"""

import sys
from pathlib import Path
from types import TracebackType

_SPACE = Path(__file__).resolve().parent
_ROOT = _SPACE.parent
_SCRIPT = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
# The Python of a script, and what sets it up.
_SERVING = (Path("space/.venv"), "make serving")
_PYTHONS = {"prepare_assets.py": (Path("space/.venv-builder"), "make space/.venv-builder/.ready"),
            "validate_bundle.py": (Path(".venv"), "make repro")}

_before = sys.excepthook


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    folder, set_up = _PYTHONS.get(_SCRIPT.name, _SERVING)
    if not isinstance(error, ModuleNotFoundError) or Path(sys.prefix) == _ROOT / folder:
        _before(kind, error, trace)
        return
    first = "" if (_ROOT / folder / ".ready").exists() else f"run `{set_up}`, and then "
    call = f"{folder}/bin/python {_SCRIPT.relative_to(_ROOT)}"
    place = "" if Path.cwd() == _ROOT else f" in {_ROOT}"
    sys.stderr.write(f"ERROR {error} in this Python ({sys.executable}); {first}run it with `{call}`{place}\n")
    sys.exit(2)


if _SCRIPT.parent == _SPACE and (_ROOT / "Makefile").is_file():
    sys.excepthook = _show
