"""``python -m shunter_cli.reference FILE``: docs/settings.md, written from the settings as they are declared."""

from __future__ import annotations

import sys
from pathlib import Path

from shunter_cli.setting_flags import off
from shunter_work_pools.contracts.settings import RELATIONS, SETTINGS, Setting

_HEAD = """\
# Settings

<!-- Written by `make docs` from work_pools/shunter_work_pools/contracts/settings.py; a test compares. -->

A setting comes from the first of these that gives it:

1. the command's flag,
2. its environment variable (an empty one is as good as none),
3. the profile in use, in the configuration file,
4. its default.

`shunter config show` prints every value and where it comes from, `shunter config set NAME VALUE` writes one into the
profile in use, `shunter config unset NAME` takes it out again.

What is unknown is an error, not passed over: a variable that begins with `SHUNTER_` and is neither listed here nor in
[environment](environment.md), a key that the file should not have, a profile that it does not have. So are a value
that cannot be and two that do not fit. The error says where the value came from: the flag, the variable, the file and
line. Nothing has been started or changed then.

## The configuration file

`config.toml` in the home: `~/.config/shunter`, or the folder that `SHUNTER_HOME` names.

```toml
profile = "work"                    # the one in use; without this line "default", if there is one

[profiles.default]
log.level = "debug"

[profiles.work]
api_url = "https://shunter.example.com/api"
token = "..."
server.late_after = "1m"
keep = { runs = 1000, logs_for = "7d" }
```

`SHUNTER_PROFILE`, or `--profile NAME` before the command (`shunter --profile work run list`), chooses another. An
agent that is started so goes by it, too. `config set` makes file and profile where they are missing, keeps comments,
and gives the file mode 0600, since it may hold a token.

Durations are written `500ms`, `30s`, `5m`, `1h30m`, `7d`, or as a number of seconds.

## All settings

"""


def page() -> str:
    """The page, Markdown."""
    lines = ["| setting | variable | flag | default | |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(setting) for setting in SETTINGS.values()]
    lines += ["", "## What has to fit", "", *(f"- {relation}" for relation in RELATIONS)]
    return _HEAD + "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag} {_cell(setting.metavar)}`" if setting.flag else ""
    if setting.switch:
        flag = f"`{setting.flag}`, `{off(setting)}`"
    default = f"`{setting.usual}`" if setting.default not in (None, (), {}) else setting.usual
    hidden = {None: "", "***": " Shown as `***`."}
    secret = hidden.get(setting.mask and setting.mask("x"), " A password in it is not shown.")
    return f"| `{setting.name}` | `{setting.variable}` | {flag} | {default} | {_cell(setting.doc)}{secret} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("python -m shunter_cli.reference FILE: it takes the file to write, and no options")
    Path(sys.argv[1]).write_text(page(), "utf-8")
