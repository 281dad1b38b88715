"""Logging: who speaks, at which level, where to; one line per user mistake."""

import logging
import warnings
from pathlib import Path

import pytest

from reprise.runtime import log
from reprise.runtime.errors import UserError

ours = logging.getLogger("reprise.somewhere")


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("reprise", "__main__"))]
    levels = [logger.level for logger in loggers]
    yield
    for handler in log._handlers:
        root.removeHandler(handler)
        handler.close()
    log._handlers.clear()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    logging.captureWarnings(False)


def test_rank_0_speaks_at_the_chosen_level(capsys):
    log.setup("info", rank=0)
    ours.debug("too quiet")
    ours.info("step %d", 7)
    logging.getLogger("__main__").info("from main")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("INFO step 7")
    assert lines[1].endswith("INFO from main")


def test_other_ranks_speak_only_to_warn_and_say_who_they_are(capsys):
    log.setup("debug", rank=3)
    ours.info("not for the terminal")
    ours.warning("peer %d is slow", 1)
    assert capsys.readouterr().err == "[rank 3] WARNING peer 1 is slow\n"


def test_other_ranks_write_no_file(tmp_path, capsys):
    log.setup("info", rank=1, file=tmp_path / "log.txt")
    ours.error("x")
    assert "[rank 1] ERROR x" in capsys.readouterr().err
    assert not (tmp_path / "log.txt").exists()


def test_other_libraries_are_heard_from_warning_up(capsys):
    log.setup("debug", rank=0)
    logging.getLogger("matplotlib.font_manager").info("chatter")
    logging.getLogger("matplotlib.font_manager").warning("no such font")
    err = capsys.readouterr().err
    assert "chatter" not in err
    assert "no such font" in err


def test_the_file_keeps_what_a_quiet_terminal_does_not_show_and_is_appended_to(tmp_path, capsys):
    file = tmp_path / "log.txt"
    file.write_text("from the run before\n")
    log.setup("error", rank=0, file=file)
    ours.info("started")
    ours.debug("detail")
    assert capsys.readouterr().err == ""
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0] == "from the run before"
    assert lines[1].endswith("INFO started")


def test_debug_reaches_terminal_and_file(tmp_path, capsys):
    log.setup("DEBUG", rank=0, file=tmp_path / "log.txt")
    ours.debug("detail")
    assert "DEBUG detail" in capsys.readouterr().err
    assert "DEBUG detail" in (tmp_path / "log.txt").read_text()


def test_a_second_setup_replaces_the_first(tmp_path, capsys):
    log.setup("info", rank=0)
    log.setup("info", rank=0, file=tmp_path / "log.txt")
    ours.info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "log.txt").read_text().count("once") == 1


def test_python_warnings_are_logged(capsys):
    log.setup("info", rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # catch_warnings and captureWarnings both patch showwarning
        logging.captureWarnings(True)
        warnings.warn("deprecated thing", UserWarning, stacklevel=1)
    assert "deprecated thing" in capsys.readouterr().err


def test_an_unknown_level_is_one_line_with_the_nearest_name_and_changes_nothing(capsys):
    log.setup("info", rank=0)
    with pytest.raises(UserError, match=r"log level 'infos' is unknown, did you mean 'info'\?.*debug, info") as caught:
        log.setup("infos", rank=0)
    assert "\n" not in str(caught.value)
    ours.info("still here")
    assert "still here" in capsys.readouterr().err


def test_a_log_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot write '.*log\.txt'") as caught:
        log.setup("info", rank=0, file=tmp_path / "log.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_file_on_a_full_disk_is_said_once_and_ends_no_run(capsys):
    log.setup("info", 0, Path("/dev/full"))
    for _ in range(3):
        logging.getLogger("reprise.test").info("a line")
    printed = capsys.readouterr().err
    assert printed.count("No space left on device") == 1
    assert printed.count("a line") == 3
    assert "Traceback" not in printed
    log.setup("info", 0)
