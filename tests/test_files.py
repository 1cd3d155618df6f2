"""Files that are written whole or not at all, at the end of links and beside what is printed."""

import os

import pytest

from vnet_fast.errors import InputError
from vnet_fast.files import write_text


def test_a_link_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    file, link, chain = tmp_path / "folder" / "file", tmp_path / "link", tmp_path / "chain"
    file.write_text("old")
    link.symlink_to(file)
    chain.symlink_to("link")
    write_text(chain, "new", follows=True)
    assert file.read_text() == "new"
    assert link.is_symlink()
    assert chain.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_a_link_to_a_new_file(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new", follows=True)
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_in_a_run_is_replaced(tmp_path):
    """The run that a copy of links leads to stays as it is."""
    (tmp_path / "original").write_text("old")
    (tmp_path / "link").symlink_to("original")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "original").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_printed_to_is_not_replaced(tmp_path, number):
    """As `--csv /dev/stdout > FILE` would, and the link `/dev/stdout` itself, where that is permitted."""
    (tmp_path / "link").symlink_to("file")
    before = os.dup(number)
    with open(tmp_path / "file", "wb") as file:
        os.dup2(file.fileno(), number)
        try:
            with pytest.raises(InputError, match="can't be written \\(this program prints to it\\)"):
                write_text(tmp_path / "link", "new")
            os.write(number, b"printed")
        finally:
            os.dup2(before, number)
            os.close(before)
    assert (tmp_path / "file").read_text() == "printed"
    assert (tmp_path / "link").is_symlink()
