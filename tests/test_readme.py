"""What the documents tell a reader to type is true: the example runs, the commands and flags exist."""

import re
import shlex

import numpy as np
import pytest

from tests.imports import ROOT

DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))
README = (ROOT / "README.md").read_text()

# The example, as small as it can be on a two-core machine; each text must be in the README.
SMALLER = {"frames=81": "frames=17", "size=256": "size=32", "steps=100": "steps=4"}
SCENES, CLIPS_PER_SCENE = 10, 2


@pytest.fixture
def reader_folder(tmp_path, monkeypatch):
    """A folder with what the example expects: a Wan checkpoint, clips, and labels."""
    from jaxdiff.flow.schedule import Schedule
    from jaxdiff.models.network import Network
    from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
    from jaxdiff.pipeline import Pipeline
    from ports.writer import save_pipeline

    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    pipeline = Pipeline(
        transformer=Network.init(WanTransformer, WanTransformerConfig.nano(), seed=0),
        vae=Network.init(WanVAE, WanVAEConfig.nano(), seed=1),
        family=Wan(),
        schedule=Schedule.from_config(scheduler),
    )
    save_pipeline(pipeline, tmp_path / re.search(r'jaxdiff\.load\("(.+)"\)', README)[1])

    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    labels = []
    for i in range(SCENES * CLIPS_PER_SCENE):
        clip = rng.integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / "clips" / f"{i:02d}.npy", clip)
        labels.append(f"{i % 2},{i // CLIPS_PER_SCENE}")
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    monkeypatch.chdir(tmp_path)


def test_the_example_of_the_readme_runs(reader_folder, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for text, smaller in SMALLER.items():
        assert text in code
        code = code.replace(text, smaller)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    candidates, clips, _ = names["X"].shape
    blocks = names["pipeline"].transformer.config.num_layers
    assert (candidates, clips) == (2 * blocks, SCENES * CLIPS_PER_SCENE)
    assert 0.0 <= names["result"].accuracy <= 1.0
    assert capsys.readouterr().out.strip()


def commands() -> list[tuple[str, list[str]]]:
    """Every ``python -m package.module --flag=...`` of the documents: (module, flags)."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for line in re.findall(r"python -m ((?:experiments|ports|benchmarks)\.[^`\n]*)", text):
            module, *words = shlex.split(line)
            found.append((module, [re.split("[ =]", w)[0] for w in words if w.startswith("--")]))
    return found


def test_every_command_of_the_documents_exists_with_its_flags():
    assert {module for module, _ in commands()} >= {"experiments.invert", "experiments.study"}
    for module, flags in commands():
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        for name in (flag.removeprefix("--") for flag in flags):
            # a field of the binary's frozen Config, or one of every binary
            declared = re.search(rf'^    {name}: |DEFINE_\w+\(\s*"{name}"', source, flags=re.MULTILINE)
            assert declared or name in ("workdir", "cpu_devices", "distributed"), f"{module} has no flag --{name}"


def test_every_make_target_of_the_documents_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        target for name in DOCUMENTS for target in re.findall(r"(?:`|    )make ([\w-]+)", (ROOT / name).read_text())
    }
    assert {"demo", "test"} <= named <= targets


def test_every_file_that_the_documents_link_to_exists():
    for name in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), f"{name} links to {link}"
