"""Ray computes the same records as this process, also when its workers die."""

from __future__ import annotations

import os
import re
import signal

import pytest

from dllm_sampling.study import RayExecutor, Results
from tests.study_files import command, contents, finished, small, written

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small(limit=24).run(tmp_path_factory.mktemp("whole"))


def test_two_workers_one_of_them_killed_make_the_same_records(tmp_path, whole):
    path, output = written(tmp_path), tmp_path / "out"
    process = command("compare", path, "--limit", 24, "--output", output, "--executor", "ray", "--workers", 2)
    workers = set()
    log = []
    for line in process.stderr:
        log.append(line)
        workers |= {int(pid) for pid in re.findall(r"process (\d+)\)", line)}
        if len(workers) == 2 and len(log) < 10:
            os.kill(max(workers), signal.SIGKILL)
            killed = max(workers)
            break
    else:
        pytest.fail("".join(log))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    later = {int(pid) for pid in re.findall(r"process (\d+)\)", err)}
    assert later - workers, "a new worker took the place of the one that was killed"
    assert killed not in {int(pid) for pid in re.findall(r"process (\d+)\)", "".join(err.splitlines()[-6:]))}
    assert "threshold 0.9" in out
    results = Results(output)
    assert contents(results) == contents(whole)
    assert results.manifest["runs"][0]["executor"] == "ray"
    assert results.manifest["runs"][0]["batches"] == 18


def test_policies_of_one_file_plugins_reach_the_workers(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dllm_sampling.strategies import FixedK\n"
        "class Mine(FixedK):\n"
        "    '''A rule of a test.'''\n"
        "    name = 'mine'\n"
        "class Broken(FixedK):\n"
        "    '''A rule of a test.'''\n"
        "    name = 'broken'\n"
        "    def select(self, state, observation):\n"
        "        raise IndexError('in a worker')\n"
        "def register():\n"
        "    return [Mine, Broken]\n"
    )
    samplers = [{"name": name, "unmasking": name, "cache": "dual"} for name in ("mine", "broken")]
    path = written(tmp_path, samplers=samplers, baseline="mine")
    code, out, err = finished(
        "compare", path, "--limit", 4, "--output", tmp_path / "out", "--plugins-dir", tmp_path,
        "--executor", "ray", "--workers", 1,
    )  # fmt: skip
    assert code == 1
    assert re.search("broken / seed 0: .*IndexError: in a worker", err)
    assert "mine" in out


def test_an_address_without_a_cluster_is_told(tmp_path):
    path = written(tmp_path)
    code, _, err = finished(
        "compare", path, "--limit", 2, "--output", tmp_path / "out", "--executor", "ray", "--ray-address", "auto"
    )  # fmt: skip
    assert code == 2
    assert "Ray did not start" in err
    assert "Traceback" not in err


def test_nothing_left_to_do_starts_no_ray(tmp_path, monkeypatch):
    small(limit=2).run(tmp_path)
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("Ray was started"))
    assert small(limit=2).run(tmp_path, executor=RayExecutor()).tables
