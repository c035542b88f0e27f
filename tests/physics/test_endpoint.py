"""Language models behind an endpoint: right, malformed, slow and failing answers of a real server process."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, Resumable
from jaxdiff.physics.endpoint import Endpoint, EndpointCritic, EndpointError, EndpointPlanner, chosen, data_url
from jaxdiff.physics.planner import SCHEMA, Plan, WorldPlanner, parse_plan
from tests.physics.endpoint_server import PLAN

VIDEO = np.random.default_rng(0).integers(0, 256, (1, 5, 8, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server():
    path = Path(__file__).with_name("endpoint_server.py")
    with subprocess.Popen([sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Endpoint(f"http://127.0.0.1:{process.stdout.readline().strip()}/v1", "right", timeout=20, retries=1)
        process.kill()


def model(server, name, **changes):
    return dataclasses.replace(server, model=name, **changes)


# ---------------------------------------------------------------------------------------------------------- plans


def test_a_plan_is_read_from_a_right_answer_and_is_the_same_after_a_failure_or_a_refused_option(server):
    expected = Plan.from_dict(PLAN)
    for name in ("right", "again", "flaky", "strict"):
        assert EndpointPlanner(model(server, name)).plan("a ball falls") == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("malformed", "3 answers that cannot be used.*the plan is not JSON.*poem"),
        ("garbage", "3 answers that cannot be used"),
        ("failing", "failed 2 times.*out of luck.*the same command goes on"),
    ],
)
def test_an_answer_that_cannot_be_used_ends_in_an_error_that_can_be_resumed(server, name, message):
    with pytest.raises(EndpointError, match=message) as caught:
        EndpointPlanner(model(server, name)).plan("a ball falls")
    assert isinstance(caught.value, Resumable)


def test_a_slow_server_is_not_waited_for_longer_than_the_timeout(server):
    with pytest.raises(EndpointError, match=r"failed 1 times.*Timeout"):
        EndpointPlanner(model(server, "slow", timeout=0.3, retries=0)).plan("a ball falls")


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "<think>Hm, {{}}.</think>\n{}"])
def test_a_plan_is_read_out_of_fences_and_from_behind_thoughts(wrap):
    assert parse_plan(wrap.format(json.dumps(PLAN))) == Plan.from_dict(PLAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": []}, r"\$.facts"),
        ({"facts": "it falls"}, r"\$.facts: 'it falls' is not of type 'array'"),
        ({"entities": [{"name": "ball", "role": "hero"}]}, r"\$.entities\[0\].role"),
        ({"mood": "calm"}, "mood"),
        ({"enhanced_prompt": ""}, "enhanced_prompt"),
    ],
)
def test_a_plan_that_does_not_fit_its_schema_is_refused_with_the_place(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_plan(json.dumps(PLAN | change))
    with pytest.raises(ConfigError, match="not JSON"):
        parse_plan("a plan")


def test_the_plans_by_rule_fit_the_schema_too():
    plan = WorldPlanner().plan("red disc hops-left")
    assert parse_plan(json.dumps(dataclasses.asdict(plan))) == plan
    assert "the red disc bounces on equal hops" in plan.facts
    assert {*SCHEMA["properties"]} == {field.name for field in dataclasses.fields(Plan)}
    with pytest.raises(ConfigError, match=r"none of the generated world.*--planner=endpoint"):
        WorldPlanner().plan("a ball falls")


# ------------------------------------------------------------------------------------------------------ judgements


def judged(endpoint, facts=("the ball falls",)):
    (found,) = EndpointCritic(endpoint, frames=3).judge(VIDEO, [facts], ["a ball falls"])
    return found


def test_probabilities_of_the_first_token_make_a_continuous_score(server):
    found = judged(server, ("the ball falls", "something that cannot be seen"))
    assert found.facts["the ball falls"] == pytest.approx(math.log(0.8 / 0.1))
    assert math.isnan(found.facts["something that cannot be seen"])
    assert found.commonsense == found.semantic == pytest.approx(4 * 0.5 + 5 * 0.3 + 2 * 0.2)
    assert not found.problems


def test_without_probabilities_the_words_decide(server):
    for name, problems in (("words", 0), ("strict", 3)):  # the refused option of each question is reported
        found = judged(model(server, name))
        assert (found.facts["the ball falls"], found.commonsense, found.semantic) == (4.0, 4.0, 4.0)
        assert len(found.problems) == problems


def test_an_answer_that_cannot_be_read_is_no_judgement_and_a_dead_server_is_an_error(server):
    found = judged(model(server, "malformed"))
    assert math.isnan(found.facts["the ball falls"]) and math.isnan(found.commonsense) and math.isnan(found.semantic)
    assert len(found.problems) == 3 and all("poem" in problem for problem in found.problems)
    with pytest.raises(EndpointError, match="out of luck"):
        judged(model(server, "failing"))


def test_a_video_is_shown_as_evenly_spaced_pictures_large_enough_to_be_seen():
    assert [int(f[0, 0, 0]) for f in chosen(np.arange(17, dtype=np.uint8)[:, None, None, None], 3)] == [0, 8, 16]
    assert len(chosen(VIDEO[0], 8)) == 5
    import base64
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(data_url(VIDEO[0, 0]).removeprefix("data:image/png;base64,"))))
    assert picture.size == (28 * 12, 28 * 8)
    assert np.array_equal(np.asarray(picture)[14::28, 14::28], VIDEO[0, 0])


# --------------------------------------------------------------------------------------------- before anything slow


def test_what_is_wrong_with_an_endpoint_is_said_at_once(server):
    server.check()
    with pytest.raises(ConfigError, match=r"does not serve 'gpt'; it serves .*right"):
        model(server, "gpt").check()
    with pytest.raises(ConfigError, match=r"does not answer.*Connection.*Is the server started.*vllm serve right"):
        dataclasses.replace(server, url="http://127.0.0.1:9/v1").check()
    with pytest.raises(ConfigError, match="is no address"):
        dataclasses.replace(server, url="localhost:8000")


def test_a_missing_library_names_the_extra(monkeypatch, server):
    for name in ("openai", "jsonschema"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match=rf"need {name}.*pip install 'jaxdiff\[diffphy\]'"):
                server.check()
