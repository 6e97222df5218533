"""Errors as people see them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shunter_cli import faults
from shunter_work_pools.contracts import errors
from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.pools import PoolSpec
from tests.cli.console import Console


def test_the_nearest_name_is_asked_for() -> None:
    assert faults.nearest("helo", ["hello", "world"]) == "Did you mean 'hello'?"
    assert faults.nearest("Hello", ["hello"]) == "Did you mean 'hello'?"
    assert faults.nearest("xyz", ["hello"]) == ""


def test_a_mistyped_name_gets_the_nearest_one() -> None:
    with (
        pytest.raises(errors.NotFound) as caught,
        faults.suggesting("helo", lambda: ["hello"], "otherwise"),
    ):
        raise errors.NotFound("there is no deployment 'helo'")
    assert caught.value.remedy == "Did you mean 'hello'?"


def test_a_name_unlike_all_others_gets_the_way_to_the_list() -> None:
    with pytest.raises(errors.NotFound) as caught, faults.suggesting("xyz", lambda: ["hello"], "Look there."):
        raise errors.NotFound("there is no deployment 'xyz'")
    assert caught.value.remedy == "Look there."


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PoolSpec(name="a b"), "--name 'a b': it may have letters"),
        (lambda: PoolSpec(name="a", match=["x y"]), "--match 'x y': it is a word such as gpu"),
        (lambda: RetryPolicy(count=-1), "--retries -1: it must be greater than or equal to 0"),
        (
            lambda: DeploymentSpec.model_validate({"work": {"command": ["x"]}, "retries": {"count": 5000}}),
            "--retries 5000: it must be less than or equal to 1000",
        ),
        (lambda: Work(command=["a\0"]), "a NUL character cannot be part of a command"),
        (
            lambda: DeploymentSpec(work=Work(command=["x"]), queue="q"),
            "a queue needs a pool: name the pool whose queue it is",
        ),
    ],
)
def test_a_validation_error_is_a_sentence_that_names_the_option(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValidationError) as caught:
        make()
    assert says in faults.sentence(caught.value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), 2),
        (errors.BadRequest("x"), 2),
        (errors.NotFound("x"), 2),
        (errors.Conflict("x"), 2),
        (errors.TooLarge("x"), 2),
        (errors.ServerUnreachable("x"), 1),
        (errors.Unauthenticated("x"), 1),
        (errors.ProtocolMismatch("x"), 1),
        (errors.StoreError("x"), 1),
    ],
)
def test_the_exit_code_tells_wrong_from_failed(error: errors.ShunterError, code: int) -> None:
    assert faults.exit_code(error) == code


@pytest.mark.parametrize(
    ("words", "says", "remedy"),
    [
        (["rn"], "No such command 'rn'", "Did you mean 'run'?"),
        (["run", "lst"], "No such command 'lst'", "Did you mean 'list'?"),
        (["run", "list", "--sate", "x"], "No such option: --sate", "Did you mean"),
        (["run", "list", "--state", "Complted"], "'Complted' is not a state", "Did you mean 'Completed'?"),
        (["run", "inspect"], "Missing argument", "`shunter run inspect --help` tells more."),
        (["deploy", "--name", "x"], "nothing to run", "entrypoint"),
        (["deploy", "sh", "--name", "x"], "'sh' is no entrypoint", "-- sh"),
        (["deploy", "--name", "a/b", "--", "true"], "--name 'a/b' cannot be a name", ""),
        (["pool", "create", "a b"], "'a b' cannot be a name", ""),
        (["agent", "start", "--pool", "p", "--tag", "x y"], "--tag 'x y' cannot be a tag", ""),
    ],
)
def test_wrong_usage_is_one_message_and_code_2(
    alone: Console, words: list[str], says: str, remedy: str
) -> None:
    done = alone(*words)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert says in done.err
    assert remedy in done.err
    assert "Traceback" not in done.err
    assert done.out == b""


def test_an_agent_is_told_which_pool_to_serve(alone: Console) -> None:
    done = alone("agent", "start")
    assert done.code == 2
    assert "nothing says which pool to serve. Name a pool with --pool, or join first" in done.err


def test_a_group_alone_shows_its_help(alone: Console) -> None:
    done = alone("run")
    assert done.code == 2
    assert "Commands:" in done.err


def test_help_fits_80_columns(alone: Console) -> None:
    for words in ([], ["deploy"], ["run"], ["run", "list"], ["agent", "start"], ["server", "start"], ["up"]):
        done = alone(*words, "--help")
        assert done.code == 0
        assert max(map(len, done.text.splitlines())) <= 80
