"""
The operators on inputs that hypothesis draws, against the reference in float64.

The seed is fixed unless `--long HOURS` is given. A failure there prints its seed, and
`--hypothesis-seed SEED` together with `--long 0` repeats it. fuzz_many.py makes more cases in an
hour, and its failures do not shrink.
"""

import random
import re
import sys
import time

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.devices import DEVICES
from tests.layers import fuzz_many
from tests.layers.fuzz_many import FUZZ
from tests.layers.fuzzing import reference_results


@pytest.fixture
def long_run(request):
    """(first seed, seconds), or None for a short run."""
    hours = request.config.getoption("--long", None)
    threads = torch.get_num_threads()
    if hours is None:
        yield None
    else:
        seed = request.config.getoption("--hypothesis-seed", None)
        first = random.SystemRandom().randrange(2**32) if seed is None else int(seed)
        yield first, hours * 3600 / len(FUZZ)
    torch.set_num_threads(threads)


@st.composite
def cases(draw, make_case):
    return make_case(lambda values: draw(st.sampled_from(values)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", FUZZ)
def test_matches_reference(operator, device, long_run):
    make_case, check, examples = FUZZ[operator]
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        derandomize=long_run is None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def run():
        @settings
        @hypothesis.given(cases(make_case))
        def all_cases(case):
            check(case, device, reference_results)

        all_cases()

    if long_run is None:
        run()
        return
    seed, seconds = long_run
    end = time.monotonic() + seconds
    while True:
        try:
            hypothesis.seed(seed)(run)()
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
        if time.monotonic() > end:
            return


def test_many_cases(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz_many", "--cases", "300", "--seed", "0"])
    assert fuzz_many.main() == 0
    *_, last = capsys.readouterr().out.splitlines()
    counts = {name: int(count) for name, count in re.findall(r"(\w+) (\d+) cases, 0 failed", last)}
    assert list(counts) == list(FUZZ) and sum(counts.values()) >= 300


def test_many_cases_go_on_where_one_fails(monkeypatch, capsys):
    def check(case, device, expected_results):
        assert case["seed"] % 2 == 0, "an odd seed"
        return 1

    make_case, *_ = FUZZ["soft_nms"]
    monkeypatch.setattr(fuzz_many, "FUZZ", {"soft_nms": (make_case, check, 1)})
    command = ["fuzz_many", "--cases", "20", "--seed", "5", "--kinds", "soft_nms"]
    monkeypatch.setattr(sys, "argv", command)
    assert fuzz_many.main() == 1
    out, err = capsys.readouterr()
    failed = re.findall(r"^failed: --cases 1 --kinds soft_nms --seed (\d+)$", out, re.MULTILINE)
    assert 0 < len(failed) < 20 and f"soft_nms 20 cases, {len(failed)} failed" in out
    assert err.count("AssertionError: an odd seed") == len(failed)
    # What is printed repeats it.
    command[2:5] = ["1", "--seed", failed[0]]
    assert fuzz_many.main() == 1
    assert f"first seed {failed[0]}\n" in capsys.readouterr().out
