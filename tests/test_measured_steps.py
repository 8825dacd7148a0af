"""Seconds from timed steps: the speed of each kind of work, and nothing where a kind was not timed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from medshift.costs import extrapolation
from medshift.costs.measured import Step, Steps, measured_table, measured_verdict, read_steps, write_steps
from medshift.costs.workload import ENCODING, EVALUATION, TRAINING, Work, pair_training, work_of
from medshift.errors import DataError, ParameterError
from medshift.methods_index import TRAINED
from medshift.repro.profiles import load_profile

# A training at 2 TFLOP/s, evaluations at 1, encoding at half of that.
TIMED = (
    Step(TRAINING, 64, 4e12, 2.0, 1.9, 2.2),
    Step(EVALUATION, 8, 1e12, 1.0, 1.0, 1.0),
    Step(ENCODING, 8, 1e12, 2.0, 2.0, 2.0),
)
STEPS = Steps("a device", "gpu", "make bench", TIMED)


def test_the_work_that_was_timed_takes_the_time_that_it_took() -> None:
    timed = TIMED[0]
    work = Work("network", 1000 * timed.images, timed.operations / timed.images, TRAINING)
    assert STEPS.seconds([work]) == pytest.approx(1000 * timed.seconds)


def test_kinds_have_speeds_of_their_own_and_add_up() -> None:
    work = [Work("a", 2, 1e12, TRAINING), Work("b", 3, 1e12), Work("c", 1, 1e12, ENCODING)]
    assert STEPS.seconds(work) == pytest.approx(2 / 2 + 3 / 1 + 1 / 0.5)
    parts = {"one": work[:1], "two": work[1:]}
    rows = measured_table("gpu", parts, STEPS, seeds=6)
    minutes = [float(row.split("|")[3]) for row in rows[2:]]
    assert minutes == pytest.approx([6 * 1 / 60, 6 * 5 / 60, 6 * 6 / 60], abs=0.051)
    assert "within the 60" in measured_verdict("gpu", parts, STEPS, 3, 60.0)
    said = measured_verdict("gpu", parts, STEPS, 1200, 60.0)
    assert "2.0 times the 60" in said and "Extrapolated from steps measured on a device" in said
    assert "of the sizes of `gpu`" in measured_verdict("cpu", parts, STEPS, 3, 60.0)


def test_work_without_operations_needs_no_speed() -> None:
    assert STEPS.seconds([Work("a codec of patches", 10, 0.0, "encoding by patches")]) == 0.0


def test_a_kind_that_was_not_timed_is_named() -> None:
    with pytest.raises(ParameterError, match="lack training cut"):
        STEPS.seconds([Work("x", 1, 1.0, pair_training("cut"))])


def test_a_file_of_steps_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_steps(tmp_path / "new" / "steps.json", STEPS)
    assert read_steps(tmp_path / "new" / "steps.json") == STEPS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": [{"what": "x"}]}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_steps(path)
    with pytest.raises(DataError):
        read_steps(tmp_path / "none.json")


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"operations": 0.0}, {"images": 0}, {"low": 3.0}, {"high": 1.0}])
def test_a_step_that_took_no_time_is_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    write_steps(tmp_path / "steps.json", STEPS)
    body = json.loads((tmp_path / "steps.json").read_text())
    body["steps"][0] |= wrong
    (tmp_path / "steps.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match="no timed step"):
        read_steps(tmp_path / "steps.json")


def test_the_command_takes_the_file_in_place_of_a_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_steps(tmp_path / "steps.json", STEPS)
    monkeypatch.setattr(extrapolation, "work_of", lambda profile: {"the network": [Work("n", 3600, 2e12, TRAINING)]})
    monkeypatch.setattr(sys, "argv", ["extrapolation", "--steps", str(tmp_path / "steps.json"), "--seeds", "3"])
    extrapolation.main()
    said = capsys.readouterr().out
    assert "| the network | 21.60 | 180.0 | 2.00 |" in said and "3.0 times the 60 minutes" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bench_times_every_kind_of_work_that_a_profile_does() -> None:
    timed = {TRAINING, EVALUATION, ENCODING, "decoding", "training the autoencoder", *map(pair_training, TRAINED)}
    done = {one.what for some in work_of(load_profile("smoke")).values() for one in some if one.operations}
    assert done <= timed and {TRAINING, EVALUATION} <= done
