"""Folders that are replaced: the new one whole, or the earlier one again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sorl import files


def replace(path: Path, content: str) -> None:
    with files.new_folder(path) as new:
        (new / "content").write_text(content)


def content(path: Path) -> str:
    return (path / "content").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    replace(path, "old")
    return path


def test_a_folder_is_replaced_whole(folder: Path) -> None:
    replace(folder, "new")
    assert content(folder) == "new"
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_leaves_the_earlier_folder(
    failing: int, error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def fails(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise error
        rename(*paths)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(error):
        replace(folder, "new")
    assert content(folder) == "old"
    assert os.listdir(folder.parent) == [folder.name]


def test_a_folder_that_has_its_name_stays_whatever_comes_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = files._sync_folder

    def fails(path: Path) -> None:
        if path == folder.parent:
            raise OSError
        sync(path)

    monkeypatch.setattr(files, "_sync_folder", fails)
    with pytest.raises(OSError):  # noqa: PT011 (of no kind)
        replace(folder, "new")
    assert content(folder) == "new"
    monkeypatch.undo()
    files.remove_leftovers(folder.parent)
    assert content(folder) == "new"
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("cleaned", [True, False])
def test_what_a_kill_between_the_two_names_left_is_brought_back(
    cleaned: bool, folder: Path
) -> None:
    os.rename(folder, folder.with_name(".replaced-folder"))
    if cleaned:
        files.remove_leftovers(folder.parent)
    else:
        with pytest.raises(ValueError, match="stop"), files.new_folder(folder):
            raise ValueError("stop")
    assert content(folder) == "old"
    assert os.listdir(folder.parent) == [folder.name]


def test_a_kill_after_the_second_name_leaves_the_new_folder(folder: Path) -> None:
    replaced = folder.with_name(".replaced-folder")
    replaced.mkdir()
    (replaced / "content").write_text("older")
    files.remove_leftovers(folder.parent)
    assert content(folder) == "old"
    assert os.listdir(folder.parent) == [folder.name]
