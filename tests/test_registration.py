"""Tables of items that register themselves: order, choices, and a new file that is found without any list."""

import sys

import pytest

from backend.errors import UserError
from backend.registration import Registry

TOYS = "toys_for_registration"
TOY_FILE = f"from {TOYS} import TABLE\nTABLE.add('last', 'from its own file')\n"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of toys whose package has one module that registers a toy."""
    package = tmp_path / TOYS
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from backend.registration import Registry\nTABLE = Registry('toy', '{TOYS}')\n"
    )
    (package / "last.py").write_text(TOY_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    import toys_for_registration

    yield toys_for_registration.TABLE
    for name in [name for name in sys.modules if name.split(".")[0] == TOYS]:
        del sys.modules[name]


def test_a_file_beside_the_others_is_found_when_the_table_is_read(table):
    table.add("second", 2, order=20)
    table.add("first", 1, order=10)
    assert f"{TOYS}.last" not in sys.modules
    assert list(table) == ["first", "second", "last"]
    assert table["last"] == "from its own file"
    assert len(table) == 3


def test_a_decorator_registers_and_changes_nothing(table):
    def toy():
        return 3

    assert table.register("toy", lambda function: function(), order=1)(toy) is toy
    assert table["toy"] == 3


def test_an_unknown_name_is_answered_with_the_choices(table):
    with pytest.raises(UserError) as caught:
        table.find("robot")
    assert str(caught.value) == "There is no toy named robot. Choose one of: last."


def test_no_name_is_given_twice():
    table = Registry("toy", TOYS)
    table.add("ball", 1)
    with pytest.raises(ValueError, match="two toys named ball"):
        table.add("ball", 2)


def test_a_file_that_fails_shows_its_own_error_every_time(table, tmp_path):
    (tmp_path / TOYS / "broken.py").write_text(
        f"from {TOYS} import TABLE\nTABLE.add('broken', 0)\nraise ImportError('no such library')\n"
    )
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            list(table)
    (tmp_path / TOYS / "broken.py").unlink()
    assert list(table) == ["last"]
