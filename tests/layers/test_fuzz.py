"""
The operators on inputs that hypothesis draws, against the reference in float64.

The seed is fixed unless `--long HOURS` is given. A failure there prints its seed, and
`--hypothesis-seed SEED` together with `--long 0` repeats it.
"""

import random
import time

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.devices import DEVICES
from tests.layers import operators
from tests.layers.fuzzing import reference_results

FUZZ = operators.having("FUZZ")


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
        one = settings(lambda case: check(case, device, reference_results))
        hypothesis.given(cases(make_case))(one)()

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
