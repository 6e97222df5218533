"""Values of tasks kept between runs, by inputs and code: ``@task(cache=True)``.

They are where the flow's ``result_storage`` is, else in a folder of this user's. A task's ``cache`` may be a function of
``(task, arguments)`` that gives a text instead, or None for no cache this time.
"""

from __future__ import annotations

import json
import os
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from shunter.results import NotKept, Store, decode, encode

if TYPE_CHECKING:
    from shunter.futures import TaskFuture


def home() -> str:
    """The folder of this user's cache."""
    own = os.environ.get("SHUNTER_HOME")
    if own:
        return os.path.join(own, "cache", "results")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "shunter", "results")


def find(run: TaskFuture[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether there is a value that has not expired; it becomes the run's."""
    key = _key(run, args, kwargs)
    run._cache_key = key
    if not key:
        return False
    try:
        data = _store(run).read(key)
        head, _, body = data.partition(b"\n")
        about = json.loads(head)
        if about["until"] is not None and about["until"] <= time.time():
            return False
        run._value = decode(about["z"], body)
    except FileNotFoundError:
        return False
    except Exception as exc:
        run.root.say_once(f"cache {key}", "a cached value of task %s cannot be read: %s", run.name, exc)
        return False
    return True


def keep(run: TaskFuture[Any], value: Any) -> None:
    """Keep the value. One that cannot be kept is told."""
    if not run._cache_key:
        return
    seconds = run.task.cache_expires
    until = None if seconds is None else time.time() + seconds
    try:
        store = _store(run)
        kind, data = encode(value)
        if len(data) > store.limit:
            raise NotKept(f"it takes {len(data)} bytes, more than the {store.limit} allowed (result_limit)")
        store.write(run._cache_key, json.dumps({"z": kind, "until": until}).encode() + b"\n" + data)
    except Exception as exc:  # a file system's drivers raise what they like
        run.root.say_once(f"cache of {run.task.identity}", "task %s is not cached: %s", run.name, exc)


def _store(run: TaskFuture[Any]) -> Store:
    flow_run = run.flow_run
    return Store(flow_run.result_storage or home(), flow_run.store.limit)


def _key(run: TaskFuture[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    from shunter import keys
    from shunter.identity import held_by, plain
    from shunter.parameters import bound

    task = run.task
    arguments = bound(task.fn, args, kwargs)
    try:
        if task.cache is not True:
            text = task.cache(task, arguments)
            if text is None:
                return ""
            made = str(text).encode()
        else:
            code = f"{task.identity}\0{task.version}\0".encode() + keys.made_with(plain(task.fn), strict=True)
            made = code + keys.digest((*held_by(task.fn), arguments), strict=True)
    except keys.Unkeyed as exc:
        run.root.say_once(f"cache of {task.identity}", "task %s is not cached: %s", run.name, exc)
        return ""
    return f"cache-{blake2b(made, digest_size=20).hexdigest()}"
