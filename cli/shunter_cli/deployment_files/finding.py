"""Which file is meant, and what its bytes say as text."""

from __future__ import annotations

import codecs
from pathlib import Path

from shunter_cli.deployment_files.places import Fault, FileFaults, Place
from shunter_work_pools.contracts.errors import InvalidInput

#: The names that are looked for in a folder.
YAML, TOML = "shunter.yaml", "shunter.toml"
#: Bytes that a file may have.
SIZE_LIMIT = 1024 * 1024
_SUFFIXES = (".yaml", ".yml", ".toml")
_WIDE = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"} | {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_SAVE = "Save it as UTF-8."


def find(folder: Path) -> Path:
    """The deployment file of a folder.

    Raises:
        InvalidInput: there is none, or there are two.
    """
    found = [folder / name for name in (YAML, TOML) if (folder / name).exists()]
    if len(found) > 1:
        raise InvalidInput(
            f"both {YAML} and {TOML} are in {folder}", f"Remove one, or say which: shunter deploy -f {YAML}"
        )
    if not found:
        other = folder / "shunter.yml"
        raise InvalidInput(
            f"nothing to deploy was named, and neither {YAML} nor {TOML} is in {folder}",
            f"Rename {other.name} to {YAML}, or give it with -f."
            if other.exists()
            else "`shunter init` writes a file to begin with; -f names another file; "
            "`shunter deploy --help` shows how to name an entrypoint or a command.",
        )
    return found[0]


def read_text(path: Path) -> str:
    """The text of a deployment file.

    Raises:
        InvalidInput: it cannot be read, or its name says neither YAML nor TOML.
        FileFaults: it is too large or not UTF-8.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(f"-f {path} is no deployment file", "Its name ends with .yaml, .yml or .toml.")
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except OSError as exc:
        raise InvalidInput(f"{path} cannot be read: {exc.strerror}", "Check the path.") from exc
    fault = _unreadable(content)
    if fault is not None:
        raise FileFaults(str(path), [fault])
    return content.decode("utf-8-sig")


def _unreadable(content: bytes) -> Fault | None:
    if len(content) > SIZE_LIMIT:
        detail = f"the file is larger than {SIZE_LIMIT // 1024} KiB"
        return Fault(None, (), detail, "Split it, and deploy each part with -f.")
    for mark, encoding in _WIDE.items():
        if content.startswith(mark):
            return Fault(Place(1, 1), (), f"the file is {encoding} and not UTF-8", _SAVE)
    if (at := content.find(b"\0")) >= 0:
        detail = "a NUL character, which no text has: a file of another kind, or UTF-16"
        return Fault(_place(content, at), (), detail, _SAVE)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as exc:
        detail = f"the byte 0x{content[exc.start]:02x} is not UTF-8: the file has another encoding"
        return Fault(_place(content, exc.start), (), detail, _SAVE)
    return None


def _place(content: bytes, at: int) -> Place:
    before = content[:at].removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    return place_in(before, len(before))


def place_in(text: str, at: int) -> Place:
    """Line and column of an offset into a text."""
    begin = text.rfind("\n", 0, at) + 1
    return Place(text.count("\n", 0, begin) + 1, at - begin + 1)
