"""A file is whole or not there: writing beside, then renaming."""

import errno
import os
from pathlib import Path
from threading import get_native_id

import pytest
from safetensors import SafetensorError

from segformer_lite.files import beside, writing


@pytest.mark.parametrize("shared", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, shared):
    path = tmp_path / "made" / "report.json"
    with beside(path, shared) as part:
        part.write_text("old")
    with beside(path, shared) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == path.parent
        assert (str(get_native_id()) in part.name) == shared
    assert path.read_text() == "new" and os.listdir(path.parent) == ["report.json"]


def test_two_files_that_differ_in_their_ending_do_not_meet(tmp_path):
    with beside(tmp_path / "run.json") as one, beside(tmp_path / "run.png") as two:
        one.write_text("json")
        two.write_text("png")
    assert (tmp_path / "run.json").read_text() == "json" and (tmp_path / "run.png").read_text() == "png"


def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), beside(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
                                   SafetensorError("No space left on device")])
def test_a_full_disk_is_one_line_that_names_the_file(error):
    with pytest.raises(OSError, match=r"^cannot write x.json \(No space left on device\): .*; begin anew$"), \
            writing(Path("x.json"), "begin anew"):
        raise error


def test_what_was_said_for_people_already_is_said_once():
    with pytest.raises(OSError, match="^a picture is damaged$"), writing("x.json"):
        raise OSError("a picture is damaged")
