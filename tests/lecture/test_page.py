"""The page of the lecture lists every row and every correction with its test."""

import re
from pathlib import Path

import pytest
from lecture_examples import PAGE, page

TESTS = {
    name
    for path in Path(__file__).parent.glob("test_s?.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}
NUMBER_OF_ROWS = {"S0": 12, "S1": 17, "S2": 17, "S3": 18, "S4": 7}
ROWS = [
    f"{notes}-{n}" for notes, last in NUMBER_OF_ROWS.items() for n in range(1, last + 1)
]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_on_the_page_with_its_test(row):
    lines = [line for line in page().splitlines() if line.startswith(f"| {row} |")]
    assert len(lines) == 1
    named = re.findall(r"`(test_\w+)`", lines[0])
    assert named and TESTS.issuperset(named)
    assert any(name.startswith(f"test_{row.replace('-', '_')}_") for name in named)


def test_every_correction_is_on_the_page():
    found = set(re.findall(r"`(test_S\d_(?:L\d+|all)_\w+)`", page()))
    here = {name for name in TESTS if re.match(r"test_S\d_(L\d+|all)_", name)}
    assert found == here


def test_every_picture_of_the_page_is_there_and_small():
    pictures = re.findall(r"\((pictures/[\w.]+)\)", page())
    assert len(pictures) >= 9
    for name in pictures:
        assert (PAGE.parent / name).stat().st_size < 60_000
