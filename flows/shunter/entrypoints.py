"""Where another process finds a flow: the file or module that it is in, and its name there."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

#: Seconds that the import of an entrypoint may take.
IMPORT_TIMEOUT = 60.0


class NotFound(Exception):
    """A flow that no other process would find; the text says why.

    Args:
        text: what is wrong.
        remedy: what to do about it.
    """

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Unfit(Exception):
    """An entrypoint that a run could not call.

    Args:
        kind: of ``inspect_entrypoint``; or ``slow``, ``no-interpreter``, ``no-answer``.
        text: what is wrong.
        detail: the traceback, or what was printed; may be empty.
    """

    def __init__(self, kind: str, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Place:
    """Where a flow is.

    Attributes:
        entrypoint: ``path.py:name`` or ``module:name``.
        source: folder that it is meant from; None: it is installed.
    """

    entrypoint: str
    source: str | None


def place_of(flow: Any) -> Place:
    """Where a flow is: by the name that it has in its module, since that is what a run asks for.

    Raises:
        NotFound: it is not in a file, or has no name there.
    """
    own = getattr(flow.fn, "__module__", None)
    modules = [sys.modules[name] for name in dict.fromkeys((own, "__main__")) if name in sys.modules]
    for module in modules:
        if (name := _name_in(module, flow)) is not None:
            return _place(flow, module, name)
    if not modules or _file(modules[0]) is None:
        raise NotFound(f"flow {flow.name} {_IN_NO_FILE}", _INTO_A_FILE)
    raise NotFound(
        f"flow {flow.name} has no name in {_file(modules[0])}: it was made inside a function, or given no name",
        "Define it in the body of the module, or assign it to a name there: a run asks for it by that name.",
    )


_IN_NO_FILE = "is in no file: it was defined in a notebook, an interactive session or text given to python"
_INTO_A_FILE = "Put it into a file that ends with .py, and import it from there."


def _name_in(module: ModuleType, flow: Any) -> str | None:
    """Its name in the body of a module, or dotted in that of a class; the name of its function if it has several."""
    names = [name for name, value in vars(module).items() if value is flow]
    if not names:
        path: str = getattr(flow.fn, "__qualname__", "")
        found: Any = module
        for part in path.split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        return path if found is flow else None
    own = getattr(flow.fn, "__name__", "")
    return own if own in names else names[0]


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file and os.path.isfile(file) else None


def _place(flow: Any, module: ModuleType, name: str) -> Place:
    file = _file(module)
    if file is None or hasattr(module, "__vsc_ipynb_file__"):
        raise NotFound(f"flow {flow.name} {_IN_NO_FILE}", _INTO_A_FILE)
    if not file.endswith(".py"):
        raise NotFound(f"flow {flow.name} is in {file}, which is no .py file", _INTO_A_FILE)
    dotted = module.__name__
    if dotted == "__main__":
        spec = getattr(module, "__spec__", None)  # of `python -m package.module`
        dotted = spec.name if spec is not None else ""
    if not dotted or dotted.startswith("_entrypoint_"):
        return Place(f"{os.path.basename(file)}:{name}", os.path.dirname(file))
    root = os.path.dirname(file)
    for _ in range(dotted.count(".") + (os.path.basename(file) == "__init__.py")):
        root = os.path.dirname(root)
    return Place(f"{dotted}:{name}", None if _is_installed(root) else root)


def _is_installed(folder: str) -> bool:
    known = sysconfig.get_paths()
    places = [*site.getsitepackages(), site.getusersitepackages(), known["purelib"], known["stdlib"]]
    return folder in {os.path.abspath(place) for place in places}


def is_looked_at() -> bool:
    """Whether this process only imports the user's code to look at it."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is not None and os.path.abspath(main) == _inspector()


def looked_at(entrypoint: str, source: str | None, python: str | None = None) -> dict[str, Any]:
    """Import an entrypoint as a run would, in a process of its own, and read its signature.

    Args:
        python: the interpreter; None: this one.

    Returns:
        ``parameter_schema`` (or None) and ``description``.

    Raises:
        Unfit: there is no such file, module or function, or its import fails.
    """
    words = [python or sys.executable, _inspector(), entrypoint]
    try:
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(
                [*words, "--source", source or empty], cwd=source or empty, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=IMPORT_TIMEOUT, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise Unfit(
            "slow", f"the import of {entrypoint} did not end within {IMPORT_TIMEOUT:.0f} seconds"
        ) from exc
    except OSError as exc:
        raise Unfit("no-interpreter", f"the interpreter {words[0]} cannot be started: {exc}") from exc
    answer = _last_object(done.stdout)
    if answer is None:
        told = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        text = f"{entrypoint} cannot be looked at: {words[0]} ended with {done.returncode} and no answer"
        raise Unfit("no-answer", text, told)
    if answer.get("error"):
        raise Unfit(str(answer.get("kind")), str(answer["error"]), str(answer.get("detail") or ""))
    return answer


def _inspector() -> str:
    # Executed by path: the interpreter it runs in need not have Shunter installed.
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "inspect_entrypoint.py")


def _last_object(printed: bytes) -> dict[str, Any] | None:
    """The JSON object on the last line; a module may print while it is imported."""
    for line in reversed(printed.decode("utf-8", "replace").splitlines()):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None
