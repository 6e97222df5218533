"""What is drawn of a run's tasks says neither more nor less than the graph."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_cli.commands import run_tasks
from shunter_cli.output import Output
from shunter_cli.task_graphs import lanes, svg
from shunter_cli.task_graphs.blocks import blocks, states
from shunter_cli.task_graphs.numbered import __doc__ as numbered_doc
from shunter_cli.task_graphs.numbered import numbered
from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph
from shunter_work_pools.queue.task_graph import Told, graph_of, sorted_by
from tests.cli.fixed_world import World, fixed_world

_DOWN = set("│├┤┼╭╮┬╷")
_ACROSS = set("├┤┼╭╮┬┴╯╰")
_SVG = "{http://www.w3.org/2000/svg}"

#: What each node follows, by number: those with a smaller one.
GRAPHS = st.integers(1, 12).flatmap(
    lambda count: st.tuples(*(st.sets(st.integers(0, max(0, at - 1))) for at in range(count)))
)


def followed(graph: tuple[set[int], ...]) -> dict[str, set[str]]:
    return {str(at): {str(one) for one in ones if one < at} for at, ones in enumerate(graph)}


def read(lines: list[tuple[str, str | None]]) -> dict[str, set[str]]:
    """What each node follows, by the drawing alone."""
    leads: dict[int, set[str]] = {}
    found: dict[str, set[str]] = {}
    at, last = 0, ""
    for line, node in lines:
        columns = line[::2]
        if node is not None:
            at, last = columns.index("o"), node
            found[node] = leads.pop(at, set())
            assert all(columns[lane] == "│" for lane in leads), lines
            continue
        for column, char in enumerate(columns):
            if column == at:
                if char in _DOWN:
                    leads.setdefault(column, set()).add(last)
            elif char in _ACROSS:
                assert char in _DOWN, lines
                leads.setdefault(column, set()).add(last)
    assert not leads, lines
    return found


@given(GRAPHS)
def test_lanes_lead_from_each_node_to_those_that_follow_and_nowhere_else(graph: tuple[set[int], ...]) -> None:
    before = followed(graph)
    drawn = lanes.drawn(list(before), before, dict.fromkeys(before, "o"))
    assert read(drawn) == before
    assert [node for _, node in drawn if node is not None] == list(before)


def test_a_diamond() -> None:
    before = {"fetch": set(), "left": {"fetch"}, "right": {"fetch"}, "total": {"left", "right"}}
    drawn = [line.rstrip() for line, _ in lanes.drawn(list(before), before, dict.fromkeys(before, "●"))]
    assert drawn == ["●", "├─╮", "● │", "│ │", "│ ●", "├─╯", "●"]
    assert lanes.__doc__ is not None
    shown = [
        line[4:10].split("  ")[0].rstrip() for line in lanes.__doc__.splitlines() if line.startswith("    ")
    ]
    assert shown == drawn, "the module shows another picture"


@given(GRAPHS)
def test_a_list_says_what_each_follows(graph: tuple[set[int], ...]) -> None:
    before = followed(graph)
    found: dict[str, set[str]] = {}
    for at, (drawn, name, after) in enumerate(numbered(list(before), before, dict.fromkeys(before, "o")), 1):
        assert drawn.split() == [str(at), "o"]
        spans = [span.split("–") for span in after.removeprefix("after ").split(", ") if span]
        found[name] = {str(one - 1) for span in spans for one in range(int(span[0]), int(span[-1]) + 1)}
    assert found == before


def test_a_diamond_as_a_list() -> None:
    before = {"fetch": set(), "left": {"fetch"}, "right": {"fetch"}, "total": {"left", "right"}}
    drawn = numbered(list(before), before, dict.fromkeys(before, "●"))
    assert numbered_doc is not None
    shown = [line.split() for line in numbered_doc.splitlines()[2:]]
    assert shown == [f"{line} {name} {after}".split() for line, name, after in drawn], (
        "the module shows another one"
    )


def test_a_graph_that_is_too_wide_for_its_names_is_a_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = [node(f"load{at}") for at in range(30)]
    ends = [node(f"save{at}") for at in range(30)]
    edges = [(f"load{at}", f"save{29 - at}") for at in range(30)]
    for nodes, is_list in ((wide + ends, True), (wide[:5] + ends[25:], False)):
        names = {one.id for one in nodes}
        run_tasks._draw(
            TaskGraph(run=UUID(int=1), nodes=nodes, edges=[edge for edge in edges if names >= set(edge)]),
            Output.TABLE,
        )
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= 80 for line in lines)
        assert all(any(name in line.split() for line in lines) for name in names)
        assert any("after 30" in line for line in lines) == is_list


def test_a_circle_is_drawn_as_far_as_it_is_none() -> None:
    before = {"a": {"b"}, "b": {"a"}}
    assert [line for line, _ in lanes.drawn(["a", "b"], before, {"a": "o", "b": "o"})] == ["o", "│", "o"]
    assert sorted_by({"x": ["y"], "y": ["x"], "z": [], "w": ["z"]}) == ["z", "w", "x", "y"]


@given(GRAPHS)
def test_equals_are_one_node_and_nothing_is_lost(graph: tuple[set[int], ...]) -> None:
    told = [
        Told(
            str(at),
            None,
            "t" if at % 2 else "u",
            False,
            "Completed",
            1,
            at,
            at,
            at + 1,
            json.dumps([str(one) for one in ones - {at}]),
        )
        for at, ones in enumerate(graph)
    ]
    each = graph_of(UUID(int=1), told, each=True)
    assert {(one, other) for one, other in each.edges} == {
        (one, task.key)
        for task in told
        for one in json.loads(task.upstream or "[]")
        if one < task.key or len(one) < len(task.key)
    }
    grouped = graph_of(UUID(int=1), told, each=False)
    assert sum(node.count for node in grouped.nodes) == len(told)
    place = {node.id: at for at, node in enumerate(grouped.nodes)}
    assert all(place[one] < place[other] for one, other in grouped.edges)
    assert len(grouped.nodes) <= len(told)


def test_where_all_differ_those_of_one_name_are_one() -> None:
    """A chain of thousands is no picture."""
    chain = [
        Told(str(at), None, "step", False, "Completed", 1, at, at, at, f'["{at - 1}"]' if at else None)
        for at in range(5000)
    ]
    graph = graph_of(UUID(int=1), chain, each=False)
    assert [(node.count, node.states) for node in graph.nodes] == [(5000, {"Completed": 5000})]
    assert graph.edges == []
    short = graph_of(UUID(int=1), chain[:50], each=False)
    assert (len(short.nodes), len(short.edges)) == (50, 49)


def node(name: str, parent: str | None = None, **more: object) -> GraphNode:
    fields: dict[str, object] = {"id": name, "name": name, "states": {"Completed": 1}, "parent": parent}
    return GraphNode.model_validate(fields | more)


def test_edges_into_a_flow_lead_to_the_flow() -> None:
    graph = TaskGraph(
        run=UUID(int=1),
        nodes=[node("main", flow=True), node("a", "main"), node("sub", "main", flow=True), node("b", "sub")],
        edges=[("a", "b")],
    )
    outer, main, sub = blocks(graph)
    assert (outer.around, main.around, sub.around) == (None, graph.nodes[0], graph.nodes[2])
    assert main.before == {"a": set(), "sub": {"a"}}
    assert sub.before == {"b": set()}


def test_the_worst_state_is_named_first() -> None:
    many = node("a", states={"Completed": 7, "Failed": 1, "Running": 1200}, count=1208)
    assert states(many) == "Failed 1, Running 1,200, Completed 7"


def test_names_do_nothing_in_an_image() -> None:
    evil = "</title><script>alert(1)</script>\x07&\"'"
    graph = TaskGraph(run=UUID(int=1), nodes=[node(evil), node("b" * 500)], edges=[(evil, "b" * 500)])
    image = ElementTree.fromstring(svg.drawn(graph, evil))
    kinds = {element.tag.removeprefix(_SVG) for element in image.iter()}
    assert kinds == {"svg", "title", "rect", "g", "path", "text"}


@given(GRAPHS)
def test_boxes_of_an_image_do_not_overlap_and_lines_lead_on(graph: tuple[set[int], ...]) -> None:
    before = followed(graph)
    nodes = [node(name) for name in before]
    edges = [(one, name) for name, ones in before.items() for one in ones]
    image = ElementTree.fromstring(svg.drawn(TaskGraph(run=UUID(int=1), nodes=nodes, edges=edges), "t"))
    boxes = {}
    for group in image.iter(f"{_SVG}g"):
        if "data-id" in group.attrib:
            x, y = map(float, group.attrib["transform"].removeprefix("translate(").removesuffix(")").split())
            rect = group.find(f"{_SVG}rect")
            assert rect is not None
            boxes[group.attrib["data-id"]] = (x, y, float(rect.attrib["width"]), float(rect.attrib["height"]))
    assert set(boxes) == set(before)
    for one, (x, y, width, height) in boxes.items():
        for other, (x2, y2, width2, height2) in boxes.items():
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
            assert one == other or apart
    assert all(boxes[one][0] + boxes[one][2] < boxes[other][0] for one, other in edges)
    paths = [path.attrib["d"] for path in image.iter(f"{_SVG}path")]
    assert len(paths) == len(edges)
    for path in paths:
        way = list(points(path))
        ends = [
            name
            for name, (x, y, width, height) in boxes.items()
            if way[0] == pytest.approx((x + width, y + height / 2), abs=0.2)
            or way[-1] == pytest.approx((x, y + height / 2), abs=0.2)
        ]
        assert len(ends) == 2
        for x, y in way:
            for name, (left, top, width, height) in boxes.items():
                inside = left < x < left + width and top < y < top + height
                assert name in ends or not inside, (path, name)


def points(path: str) -> Iterator[tuple[float, float]]:
    """Places that a line comes through."""
    x, y = map(float, path[1 : path.index("H")].split())
    for step in re.findall("[HC][^HC]+", path):
        numbers = list(map(float, step[1:].split()))
        if step[0] == "H":
            yield from ((x + (numbers[0] - x) * part / 8, y) for part in range(9))
            x = numbers[0]
        else:
            xs, ys = [x, *numbers[::2]], [y, *numbers[1::2]]
            yield from ((bezier(xs, part / 8), bezier(ys, part / 8)) for part in range(9))
            x, y = numbers[4], numbers[5]


def bezier(at: list[float], t: float) -> float:
    return sum(
        weight * one
        for weight, one in zip(
            ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3), at, strict=True
        )
    )


# ---- the commands


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Iterator[World]:
    with fixed_world(tmp_path_factory.mktemp("fixed"), module_cache) as made:
        yield made


def test_a_graph_is_written_as_an_image(world: World, tmp_path: Path) -> None:
    file = tmp_path / "graph.svg"
    done = world("run", "graph", "{failed}", "--svg", str(file))
    assert (done.code, done.text) == (0, "")
    assert "7 nodes drawn" in done.err
    texts = {element.text for element in ElementTree.parse(file).iter(f"{_SVG}text")}
    assert {"fetch ×6", "Failed 1, Completed 5", "publish", "render"} <= texts
    assert world("run", "graph", "{failed}", "--svg", "-").text == file.read_text()


def test_what_is_wrong_is_told(world: World, tmp_path: Path) -> None:
    for words, said in (
        (("tasks", "{failed}", "--state", "late"), "there is no state 'late' of tasks"),
        (("tasks", "ffffffffffff"), "no run's id ends in"),
        (("graph", "{failed}", "--svg", str(tmp_path / "no" / "x.svg")), "--svg"),
        (("graph", "{failed}", "--svg", "-", "--output", "json"), "--svg writes an image once"),
        (("artifacts", "{failed}", "other"), "left no artifact 'other'"),
    ):
        done = world("run", *words)
        assert done.code == 2, (words, done.code, done.err)
        assert said in done.err


def test_an_export_has_tasks_and_artifacts_where_that_is_asked_for(world: World) -> None:
    done = world("run", "export", "--state", "failed", "--tasks")
    (run,) = map(json.loads, done.text.splitlines())
    assert len(run["tasks"]) == 17
    assert {one["key"]: one["data"] is None for one in run["artifacts"]} == {"prices": False, "report": False}
    assert len(run["attempts"]) == 2
    (plain,) = map(json.loads, world("run", "export", "--state", "failed").text.splitlines())
    assert "tasks" not in plain
