"""What is made once and shared: whole or not there, kept while it is used, removed when it is old."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from shunter_agents.sources.shelf import Make, Shelf
from shunter_infrastructure.removing import remove

DAY = 86_400.0


def user(root: Path, name: str = "run.1") -> Path:
    folder = root / "attempts" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def making(text: str = "x" * 1000) -> Make:
    async def make(draft: Path) -> None:
        draft.mkdir()
        (draft / "sub").mkdir()
        (draft / "sub" / "file").write_text(text)

    return make


def aged(shelf: Shelf, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(shelf.folder / f"{key}.lock", (then, then))


async def test_it_is_made_once_for_all_who_want_it_at_once(tmp_path: Path) -> None:
    made = []

    async def make(draft: Path) -> None:
        made.append(draft)
        await asyncio.sleep(0.05)
        await making()(draft)

    shelves = [Shelf(tmp_path / "shelf") for _ in range(3)]
    found = await asyncio.gather(
        *(shelves[n % 3].take("key", user(tmp_path, f"run.{n}"), make) for n in range(12))
    )
    assert set(found) == {tmp_path / "shelf" / "key"}
    assert len(made) == 1


async def test_what_fails_or_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")

    async def fails(draft: Path) -> None:
        await making()(draft)
        raise ValueError("no")

    async def hangs(draft: Path) -> None:
        await making()(draft)
        begun.set()
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="no"):
        await shelf.take("key", user(tmp_path), fails)
    begun = asyncio.Event()
    task = asyncio.ensure_future(shelf.take("key", user(tmp_path), hangs))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not shelf.has("key")
    assert [path.name for path in shelf.folder.iterdir() if path.is_dir()] == ["users"]
    await shelf.take("key", user(tmp_path), making())


async def test_what_is_old_goes_unless_an_attempt_uses_it(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    used = user(tmp_path, "used.1")
    await shelf.take("used", used, making())
    await shelf.take("old", user(tmp_path, "gone.1"), making())
    await shelf.take("new", user(tmp_path, "gone.1"), making())
    (tmp_path / "attempts/gone.1").rmdir()  # as an attempt's folder is, once its end is told
    aged(shelf, "used", 3 * DAY)
    aged(shelf, "old", 3 * DAY)
    assert shelf.collect(2 * DAY, None) == ["old"]
    assert shelf.has("used")
    assert shelf.has("new")
    assert sorted(path.name for path in shelf.folder.iterdir()) == [
        *("new", "new.json", "new.lock", "used", "used.json", "used.lock", "users"),
    ]
    used.rename(tmp_path / "trash")
    assert shelf.collect(2 * DAY, None) == ["used"]


async def test_over_the_limit_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    for number, key in enumerate(["a", "b", "c"]):
        await shelf.take(key, user(tmp_path, f"run.{number}"), making())
        aged(shelf, key, 1000 - 100 * number)
    (tmp_path / "attempts/run.1").rmdir()
    (tmp_path / "attempts/run.2").rmdir()
    assert [one.size for one in shelf.kept()] == [1000] * 3
    assert shelf.collect(DAY, 2500) == ["b"], "a is in use"
    assert shelf.collect(DAY, 2500) == []
    assert shelf.collect(DAY, 0) == ["c"]


async def test_to_take_and_to_collect_at_once_never_takes_away_what_is_used(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    over = False

    async def collect() -> None:
        while not over:
            await asyncio.to_thread(shelf.collect, -1.0, None)

    async def use(number: int) -> None:
        for turn in range(20):
            folder = user(tmp_path, f"run{number}.{turn}")
            place = await shelf.take("key", folder, making())
            await asyncio.sleep(0.001)
            assert (place / "sub" / "file").exists()
            folder.rmdir()

    collectors = [asyncio.ensure_future(collect()) for _ in range(2)]
    await asyncio.gather(*(use(number) for number in range(4)))
    over = True
    await asyncio.gather(*collectors)


async def test_nothing_in_it_can_be_written(tmp_path: Path) -> None:
    place = await Shelf(tmp_path / "shelf").take("key", user(tmp_path), making())
    assert [oct(path.stat().st_mode & 0o777) for path in (place, place / "sub", place / "sub/file")] == [
        "0o555",
        "0o555",
        "0o444",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
@pytest.mark.parametrize("umask", [0o077, 0o022])
async def test_runs_of_other_users_have_what_they_know_of_and_see_nothing_else(
    umask: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cache = Path(tempfile.mkdtemp(prefix="shunter-cache-"))  # pytest's own folders are closed to others
    request.addfinalizer(lambda: remove(cache))
    cache.chmod(0o755)
    before = os.umask(umask)
    try:
        place = await Shelf(cache / "code").take("commit-of-a-secret", user(tmp_path), making("private"))
    finally:
        os.umask(before)
    script = (
        "import os, sys; os.setgroups([]); os.setgid(61234); os.setuid(61234)\n"
        "print(open(sys.argv[1] + '/sub/file').read())\n"
        "for folder in ('.', 'users'):\n"
        "    try: os.listdir(os.path.join(os.path.dirname(sys.argv[1]), folder)); print('seen')\n"
        "    except PermissionError: print('closed')\n"
    )
    done = subprocess.run(  # noqa: ASYNC221 - quick
        ["/usr/bin/python3", "-I", "-c", script, str(place)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["private", "closed", "closed"]
