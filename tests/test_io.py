"""Files written whole: whoever reads one finds its old content or the new, and nothing else is left."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loupe_ext._io import check_writable, replacing, write


def left(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".partial"))


def start_writer(path: Path) -> subprocess.Popen:
    """A process in the middle of writing `path`."""
    code = (
        "import sys, time\nfrom loupe_ext._io import replacing\n"
        "with replacing(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_replaces_text_and_bytes_and_makes_folders(tmp_path):
    for content in ("ä 1\n", b"\x00\xff"):
        write(str(tmp_path / "a" / "b" / "file"), content)
        assert (tmp_path / "a" / "b" / "file").read_bytes() == (
            content if isinstance(content, bytes) else b"\xc3\xa4 1\n"
        )
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_nothing(tmp_path):
    write(tmp_path / "file", "old")

    def interrupted():
        with replacing(tmp_path / "file") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path):
    write(tmp_path / "file", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "file", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    killed, alive = start_writer(tmp_path / "file"), start_writer(tmp_path / "file")
    other = start_writer(tmp_path / "file.2")
    try:
        assert len(left(tmp_path)) == 3
        for process in (killed, other):
            process.kill()
            process.wait()
        write(tmp_path / "file", "new")
        assert len(left(tmp_path)) == 2  # the living writer's, and that of another file
        assert (tmp_path / "file").read_text() == "new"
        write(tmp_path / "file.2", "")
        assert len(left(tmp_path)) == 1
    finally:
        for process in (killed, alive, other):
            process.kill()
            process.wait()


def test_a_terminated_writer_that_handles_the_signal_leaves_nothing(tmp_path):
    process = start_writer(tmp_path / "file")
    process.send_signal(signal.SIGINT)
    process.wait()
    assert left(tmp_path) == []


def test_a_symlink_stays_one_and_a_planted_partial_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / "file", "old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    (tmp_path / "real" / f".file.{os.getpid()}.partial").symlink_to(victim)
    (tmp_path / "real" / ".file.0123456789abcdef.partial").symlink_to(victim)
    write(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"
    assert victim.read_text() == "precious"


def test_the_mode_is_kept_and_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", "")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o604)
        write(tmp_path / "new", "x")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_destination_is_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for path, error in (
        (tmp_path, "folder"),
        (tmp_path / "file" / "below", "File exists|Not a directory"),
        (tmp_path / "pipe", "no regular file"),
        ("/dev/null", "no regular file"),
        ("/proc/nowhere/file", "No such file"),
    ):
        start = time.perf_counter()
        with pytest.raises(OSError, match=f"out: expected a file that can be written.*({error})"):
            check_writable("out", path)
        assert time.perf_counter() - start < 5
        with pytest.raises(OSError, match=error):
            write(path, "x")
    assert check_writable("out", str(tmp_path / "new" / "file")) == tmp_path / "new" / "file"
    assert not (tmp_path / "new").exists()
