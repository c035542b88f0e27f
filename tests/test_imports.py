"""The rooms of ARCHITECTURE.md hold: imports point one way, heavy libraries stay where they are used."""

import ast
import importlib
import json

import pytest

import jaxdiff
from tests.imports import PACKAGES, ROOT, imports, library, room, room_of_file, sources

# room -> the rooms that it may import, besides itself. Written out in full: an edge is allowed because it is
# listed.
FLOOR = {"errors"}
BELOW_MODELS = FLOOR | {"kernels", "taps", "conditioning"}
BELOW_FLOW = BELOW_MODELS | {"models", "pipeline"}
ALLOWED = {
    "errors": set(),
    # leaves: arrays, files and screens; they know nothing of models
    "kernels": FLOOR | {"mesh"},
    "conditioning": FLOOR,
    "data": FLOOR | {"workdir"},
    "mesh": FLOOR,
    "processes": FLOOR,
    "progress": FLOOR,
    "workdir": FLOOR,
    "store": FLOOR | {"mesh"},
    "probes": FLOOR,
    "physics": BELOW_MODELS | {"data", "models", "pipeline", "train", "workdir"},
    # the way of the data
    "reducers": set(),
    "taps": FLOOR | {"kernels", "reducers"},
    "models": BELOW_MODELS | {"mesh"},
    "pipeline": BELOW_MODELS | {"models", "mesh"},
    "encoder": BELOW_MODELS | {"models", "data"},
    "flow": BELOW_FLOW | {"mesh"},
    "lamo": BELOW_MODELS | {"models", "probes"},
    "train": BELOW_FLOW | {"flow", "lamo", "data", "mesh", "processes", "progress", "store", "workdir"},
    "report": FLOOR | {"probes", "workdir"},
    "generation": BELOW_FLOW | {"flow", "lamo", "data", "mesh", "progress", "report", "workdir"},
    # weights come in
    "ports": BELOW_FLOW | {"flow", "lamo", "mesh", "encoder", "physics"},
}
# above everything but the binaries
ALLOWED["study"] = {*ALLOWED} - {"ports"}
ALLOWED["scaling"] = BELOW_FLOW | {"flow", "lamo", "train", "mesh", "ports", "progress", "workdir"}
ALLOWED["experiments"] = {*ALLOWED, "jaxdiff"}
# The public surface resolves names lazily, so that its edges cost nothing.
ALLOWED["jaxdiff"] = {*ALLOWED} - {"experiments"}

# Edges against the grain, inside functions only: jaxdiff.load and load_encoder find the tables of ports when called,
# fine-tuning finds the published names of layers there, small networks of ours are saved there, and the commands among
# ports are binaries, whose command lines are those of all binaries.
BACK_EDGES = {
    ("jaxdiff/pipeline.py", "ports"),
    ("jaxdiff/encoder.py", "ports"),
    ("jaxdiff/train/finetune.py", "ports"),
    ("jaxdiff/lamo/motion_field.py", "ports"),
    ("jaxdiff/models/vision/raft.py", "ports"),
    ("jaxdiff/physics/control.py", "ports"),
    ("jaxdiff/physics/unet.py", "ports"),
    *((f"ports/{command}.py", "experiments") for command in ("convert", "inspect", "unpickle")),
}

# library -> the rooms that may import it; "einops", "jax" and "numpy" may be used anywhere.
EVERYWHERE = {"einops", "jax", "numpy"}
OWNERS = {
    "PIL": {
        "data",
        "models",
        "physics",
        "report",
    },  # in models: published preprocessing of pictures is Pillow's resizing
    "absl": {"experiments"},
    "av": {"data"},
    "chex": {"models", "flow", "train"},
    "flax": {"lamo", "models", "physics", "pipeline", "ports", "train"},
    "ftfy": {"models"},
    "grain": {"data"},
    "h5py": {"data"},
    "jsonschema": {"physics"},
    "matplotlib": {"report"},
    "ml_collections": {"experiments"},
    "ml_dtypes": {"ports"},
    "openai": {"physics"},
    "optax": {"lamo", "physics", "probes", "scaling", "train", "experiments"},
    "orbax": {"ports", "processes", "train"},
    "rich": {"progress"},
    "safetensors": {"ports"},
    "scipy": {"physics"},
    "sentencepiece": {"models"},
    "tensorstore": {"store"},
    "tokenizers": {"models"},
}
REFERENCES = ("torch", "diffusers", "transformers")
# A process of its own, started by ports.unpickle, and the only way to read a pickle.
PICKLE_READER = "ports/torch_process.py"


def violations(file: str, name: str, source: str) -> list[str]:
    """What is wrong with the imports of one file of the room `name`."""
    found = []
    for item in imports(source):
        where = f"{file}:{item.line}"
        to, lib = room(item.module), library(item.module)
        if item.module.startswith("."):
            found.append(f"{where}: relative import {item.module}")
        elif to is not None and to != name and to not in ALLOWED[name]:
            if (file, to) not in BACK_EDGES or not item.in_function:
                found.append(f"{where}: {name} must not import {to}")
        elif lib == "torch" and file == PICKLE_READER and item.in_function:
            continue
        elif lib is not None and lib not in EVERYWHERE and name not in OWNERS.get(lib, ()):
            found.append(f"{where}: {lib} is not for {name}")
    return found


def test_imports_point_one_way_and_libraries_stay_in_their_rooms():
    found = []
    for path in sources(*PACKAGES):
        name = room_of_file(path)
        assert name in ALLOWED, f"{path}: a new room {name!r}; give it a line here and in ARCHITECTURE.md"
        found += violations(path.relative_to(ROOT).as_posix(), name, path.read_text())
    assert not found, "\n".join(found)


def test_the_allowed_edges_have_no_cycle():
    graph = {name: edges - {"jaxdiff"} for name, edges in ALLOWED.items() if name != "jaxdiff"}
    while graph:
        free = [name for name, edges in graph.items() if not edges & graph.keys()]
        assert free, f"these rooms import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize(
    ("file", "name", "source"),
    [
        ("jaxdiff/kernels/a.py", "kernels", "from jaxdiff.models.layers import Linear"),
        ("jaxdiff/kernels/a.py", "kernels", "def f():\n    from jaxdiff import models"),
        ("jaxdiff/flow/a.py", "flow", "import jaxdiff.probes.linear"),
        ("jaxdiff/flow/a.py", "flow", "import jaxdiff"),
        ("jaxdiff/report/a.py", "report", "import experiments.study"),
        ("jaxdiff/pipeline.py", "pipeline", "from ports.folder import load_pipeline"),
        ("jaxdiff/flow/a.py", "flow", "def f():\n    from ports.folder import load_pipeline"),
        ("ports/a.py", "ports", "import importlib\nimportlib.import_module('torch')"),
        ("ports/torch_process.py", "ports", "import torch"),
        ("ports/convert.py", "ports", "from experiments._main import run_binary"),
        ("ports/folder.py", "ports", "def f():\n    from experiments._main import run_binary"),
        ("jaxdiff/probes/a.py", "probes", "import flax"),
        ("jaxdiff/models/a.py", "models", "from . import layers"),
    ],
)
def test_the_checker_sees_a_forbidden_import(file, name, source):
    assert len(violations(file, name, source)) == 1


def test_the_checker_allows_what_the_design_allows():
    assert not violations("jaxdiff/pipeline.py", "pipeline", "def load():\n    from ports.folder import x")
    assert not violations("jaxdiff/flow/a.py", "flow", "from jaxdiff import taps\nimport jax, math")
    assert not violations("experiments/a.py", "experiments", "import jaxdiff\nfrom absl import flags")


def test_only_parity_tests_and_benchmarks_import_the_references():
    outside = [p for p in sources(*PACKAGES, "tests") if "parity" not in p.relative_to(ROOT).parts]
    outside.remove(ROOT / PICKLE_READER)
    found = [
        f"{path}:{item.line} imports {item.module}"
        for path in outside
        for item in imports(path.read_text())
        if library(item.module) in REFERENCES
    ]
    assert not found, "\n".join(found)


# ----------------------------------------------------------------------------------- what an import brings in

MODULES = """
import json, sys
exec(sys.argv[1])
names = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted(names - set(sys.stdlib_module_names) - {"__main__"})))
"""


@pytest.fixture(scope="module")
def loaded(run_python):
    """Top-level third-party modules in a fresh process after running a statement."""

    def run(statement: str) -> set[str]:
        # An editable install puts its finder there; it is no import of ours.
        names = json.loads(run_python(MODULES, statement).splitlines()[-1])
        return {name for name in names if not name.startswith(("_", "sitecustomize", "distutils"))}

    return run


def test_import_jaxdiff_brings_in_nothing(loaded):
    assert loaded("import jaxdiff") - loaded("pass") == {"jaxdiff"}


def test_kernels_bring_in_jax_and_numpy_only(loaded):
    assert loaded("import jaxdiff.kernels") - loaded("import jax, jax.numpy, numpy") == {"jaxdiff"}


def test_loading_and_inverting_bring_in_jax_flax_numpy_and_safetensors_only(loaded):
    names = "load, invert, sample, Tap, Edit, Conditioning, Pipeline, Trajectory, tap_sites"
    ours = loaded(f"from jaxdiff import {names}; import ports.folder")
    theirs = loaded("import jax, numpy, safetensors.numpy; from flax import nnx")
    assert ours - theirs == {"jaxdiff", "ports"}


# ------------------------------------------------------------------------------------------- the lazy surface


def test_every_public_name_and_room_resolves():
    for name in jaxdiff.__all__:
        assert getattr(jaxdiff, name).__name__ == name
    for name in jaxdiff._ROOMS:
        assert getattr(jaxdiff, name) is importlib.import_module(f"jaxdiff.{name}")
    assert {*jaxdiff.__all__, *jaxdiff._ROOMS} <= {*dir(jaxdiff)}


def test_type_checkers_see_the_same_surface_as_programs():
    tree = ast.parse((ROOT / "jaxdiff" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == jaxdiff._NAMES
    assert sorted(seen) == jaxdiff.__all__


def test_an_unknown_public_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'lod'.*load"):
        _ = jaxdiff.lod
