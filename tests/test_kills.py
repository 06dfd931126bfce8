"""A few kills of the real commands in the middle of file operations; `python -m tests.kills` does a hundred."""

from __future__ import annotations

import pytest

from tests.kills import COMMANDS, kill_and_resume, prepare


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_resumes_to_the_same_outputs(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    prepare(tmp_path)
    outcome = kill_and_resume(command, tmp_path, times=2, seed=1, by_clock=0)
    assert len(outcome.kills) >= 2
    assert not outcome.failures
