"""Rules that a linter does not know: nothing is skipped, nothing is left unfinished."""

import ast
import re

import pytest

from tests.imports import PACKAGES, sources

EVADING = {"skip", "skipif", "xfail", "importorskip"}
UNFINISHED = re.compile(r"\b(?:NotImplementedError|NotImplemented|TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def evasions(source: str) -> list[int]:
    """Lines that skip a test or expect it to fail, by call or by mark."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in EVADING
        and ast.unparse(node.value) in ("pytest", "pytest.mark", "unittest")
    ]


def test_no_test_is_skipped_or_expected_to_fail():
    found = [f"{path}:{line}" for path in sources("tests") for line in evasions(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source", ["@pytest.mark.skip\ndef test(): ...", "pytest.importorskip('a')", "pytest.mark.xfail(True)"]
)
def test_the_check_sees_an_evasion(source):
    assert len(evasions(source)) == 1


def test_no_code_is_left_unfinished():
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in sources(*PACKAGES, "tests")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line) and path.name != "test_house_rules.py"
    ]
    assert not found, "\n".join(found)
