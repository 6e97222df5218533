"""Takings of some shops, each in a file of its own; a file that is missing stops only what depends on it.

    python examples/shops.py /tmp/shops           # it makes three of four files there, and says what is missing

On a server the run goes on from there: the three files that were read are not read again.

    shunter deploy examples/shops.py:takings --name takings --pool default -p folder=/tmp/shops
    shunter run start takings --watch             # Failed
    printf 'item,cents\\ntea,250\\n' > /tmp/shops/west.csv
    shunter run retry RUN                         # Completed; `run tasks RUN` says what was done
    shunter run artifacts RUN takings
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from shunter import artifacts, flow, get_logger, task, track, unmapped

SHOPS = ("north", "east", "south", "west")


@task
def read(shop: str, folder: str) -> list[int]:
    """The cents of each sale."""
    with open(Path(folder) / f"{shop}.csv", newline="") as file:
        cents = [int(row["cents"]) for row in csv.DictReader(file)]
    print(f"{shop}: {len(cents)} sales")
    return cents


@task
def add(cents: list[int]) -> int:
    """What a shop took in."""
    return sum(track(cents, "adding"))


@task
def compare(sums: list[int]) -> str:
    """The best shop; all of them are in a table beside the run."""
    rows = sorted(zip(SHOPS, sums, strict=True), key=lambda row: -row[1])
    artifacts.table("takings", [{"shop": shop, "cents": cents} for shop, cents in rows])
    return rows[0][0]


@flow(name="takings")
def takings(folder: str) -> str:
    """Which shop took in most.

    Args:
        folder: has north.csv and so on, with the columns item and cents.
    """
    best = compare.submit(add.map(read.map(SHOPS, unmapped(folder)))).result()
    get_logger().info("%s took in most", best)
    return best


def some_files(folder: Path) -> None:
    """All of them but one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shop in enumerate(SHOPS[:-1], start=1):
        lines = ["item,cents", *(f"tea,{10 * number + sale}" for sale in range(number))]
        (folder / f"{shop}.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    some_files(Path(sys.argv[1]))
    state = takings.run(sys.argv[1])
    print(state.name, state.error or state.value)
