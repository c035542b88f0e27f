"""The parts of the suite gpu that are ours, at a toy size on the CPU: that they run, and that their rows come of them."""

import json

import pytest

from benchmarks import gpu, gpu_ours, gpu_sizes, run
from benchmarks.rows import PeerMissing, Settings

TOY = Settings(pairs=1, tiny=True, budget=1e9)


@pytest.fixture
def here(monkeypatch):
    """Parts run in this process, and those of torch are not installed."""

    def run_part(module, name, settings, timeout):
        if module != "gpu_ours":
            raise PeerMissing("torch cannot be imported")
        return json.loads(json.dumps(gpu_ours.PARTS[name](settings)))

    gpu.outcome.cache_clear()
    monkeypatch.setattr(gpu, "run_part", run_part)
    yield
    gpu.outcome.cache_clear()


def test_our_parts_of_the_suite_gpu_run_and_the_peers_are_listed_as_missing(here):
    found = {name: run.run_case("gpu", name, TOY) for name in ("long", "study", "finetune", "peers")}
    assert [row.missing for row in found.pop("peers")] == ["torch cannot be imported"]
    rows = [row for case in found.values() for row in case]
    assert len(rows) == 9 and not [row.name for row in rows if row.missing]
    assert all(row.value > 0 for row in rows)
    part = gpu.part("study", TOY)
    assert part["flops"] == gpu_sizes.of("study", tiny=True).flops() and part["best_batch"] in (1, 2)
    assert len(gpu.per_clip(part)) == 1


def test_the_vae_of_the_projection_runs(here):
    assert gpu.part("encode", TOY)["seconds"]["encode"][0] > 0
