"""Files are whole or not there."""

import shutil
from pathlib import Path

import pytest

from tml.core.errors import DataError
from tml.core.files import read_json, require_replaceable, whole_file, whole_folder, write_json
from tml.data.segdense import generate
from tml.simulator.config import SimulatorConfig
from tml.simulator.simulate import simulate


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_as_a_whole_and_leavings_of_a_killed_writer_go(tmp_path: Path) -> None:
    path = tmp_path / "out"
    (path / "stale").mkdir(parents=True)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("")
    with whole_folder(path) as partial:
        (partial / "new").write_text("")
        assert (path / "stale").exists()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_half_removed_never_passes_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    for name in "abc":
        (path / name).write_text("old")

    def replace() -> None:
        with whole_folder(path) as partial:
            for name in "abcd":
                (partial / name).write_text("new")

    def killed(folder: Path) -> None:
        (folder / "a").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            replace()
    found = {file.name: file.read_text() for file in path.iterdir()}
    assert found == dict.fromkeys("abcd", "new")
    replace()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nan_is_refused_since_json_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_what_no_earlier_work_of_the_kind_wrote_is_not_replaced(tmp_path: Path) -> None:
    older = (["*.parquet", "truth"], ["truth/model.json"])
    require_replaceable(tmp_path / "new", *older)
    require_replaceable(tmp_path, *older)  # empty
    (tmp_path / "users.parquet").touch()
    with pytest.raises(DataError, match=r"found a folder with users\.parquet in it, which would be lost"):
        require_replaceable(tmp_path, *older)
    with pytest.raises(DataError, match="found a file, allowed is a folder"):
        require_replaceable(tmp_path / "users.parquet", *older)
    write_json(tmp_path / "truth" / "model.json", {})
    require_replaceable(tmp_path, *older)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"found a folder with notes\.txt in it"):
        require_replaceable(tmp_path, *older)


def test_the_folder_that_one_is_in_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(Path()) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "new"]


@pytest.mark.parametrize("work", ["simulate", "synthesize"])
def test_the_users_files_are_not_replaced(work: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"found a folder with thesis\.tex in it"):
        simulate(SimulatorConfig(), tmp_path, 0) if work == "simulate" else generate(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
