"""Several processes as one run: what is refused before anything slow, and who does what in which order.

That real processes find each other and leave the bytes of one is in tests/long/test_distributed.py.
"""

import jax
import pytest

from jaxdiff import processes
from jaxdiff.errors import ConfigError


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:80", "localhost:80,2", "localhost:80,2,2", "localhost,2,0", "Auto"]
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"write auto, or host:port,processes,index .* 10\.0\.0\.1:8476,2,0"):
        processes.join(text)


def test_a_process_where_nothing_says_who_the_others_are_is_told_what_to_write(monkeypatch):
    def initialize(*args):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match=r"should be defined.*Slurm .* elsewhere write host:port,processes,index"):
        processes.join("auto")
    with pytest.raises(ConfigError, match="is process 0 running"):
        processes.join("localhost:80,2,1")


def test_an_address_reaches_jax(monkeypatch):
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: given.append(args))
    processes.join("")
    processes.join("auto")
    processes.join("node1:8476,16,3")
    assert given == [(), ("node1:8476", 16, 3)]


@pytest.mark.parametrize(
    ("index", "count", "expected"),
    [
        (0, 1, ["whole"]),
        (0, 3, [(0, 3), "meet parts", "whole", "meet whole"]),
        (2, 3, [(2, 3), "meet parts", "meet whole"]),
    ],
)
def test_every_process_does_its_part_and_the_first_the_rest(index, count, expected, monkeypatch):
    done = []
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    meet = processes.meet
    monkeypatch.setattr(processes, "meet", lambda name: meet(name) if count == 1 else done.append(f"meet {name}"))
    processes.divide(done.append, lambda: done.append("whole"))
    assert done == expected
