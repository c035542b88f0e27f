"""The wheel carries the packages and the nano model, declares what they import, and nothing else is in it."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest

from tests.imports import PACKAGES, ROOT, imports, library, sources

CORE = {
    "jax", "flax", "optax", "orbax-checkpoint", "numpy", "einops", "tensorstore", "chex", "absl-py",
    "ml-collections", "safetensors", "av", "grain", "matplotlib", "rich",
}  # fmt: skip
EXTRAS = {"cuda12", "cuda13", "tpu", "diffphy", "test", "parity", "dev"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, by the build backend itself: no network and no isolated environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def canonical(requirement: str) -> str:
    """The normalised project name at the start of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == on_disk


def test_every_folder_of_modules_is_a_package():
    # A folder without __init__.py imports from a checkout by accident of the namespace rules.
    folders = {path.parent for path in sources(*PACKAGES)}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_the_wheel_carries_the_nano_model_within_its_size(wheel):
    assets = [info for info in wheel.infolist() if info.filename.startswith("jaxdiff/assets/nano/")]
    assert {".safetensors", ".json"} <= {"." + info.filename.rsplit(".", 1)[-1] for info in assets}
    assert sum(info.file_size for info in assets) <= 20e6


def test_the_wheel_carries_the_licence_and_the_version(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    source = (ROOT / "jaxdiff" / "__init__.py").read_text()
    assert f'__version__ = "{metadata["Version"]}"' in source


def test_dependencies_and_extras_are_the_documented_ones(metadata):
    core = {canonical(r) for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert core >= CORE
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Requires-Python"] == ">=3.11"


def test_every_library_that_the_packages_import_is_a_declared_dependency():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {canonical(requirement) for requirement in declared}
    planner = "jaxdiff/physics/planner.py"
    apart = {
        ("ports/torch_process.py", "torch"),  # of the parity extra, in a process of its own
        (planner, "openai"),  # of the extra diffphy, for language models only
        (planner, "jsonschema"),
    }
    distributions = packages_distributions()
    found = [
        f"{path.relative_to(ROOT)}:{item.line} imports {lib}"
        for path in sources(*PACKAGES)
        for item in imports(path.read_text())
        if (lib := library(item.module))
        and (str(path.relative_to(ROOT)), lib) not in apart
        and not names & {canonical(dist) for dist in distributions.get(lib, [lib])}
    ]
    assert not found, "\n".join(found)


def test_the_unpacked_wheel_imports_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import jaxdiff, jaxdiff.kernels, ports, experiments; print(jaxdiff.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "jaxdiff" / "__init__.py")
