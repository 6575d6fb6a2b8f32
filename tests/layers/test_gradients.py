import pytest

from tests.devices import DEVICES
from tests.layers.gradients import TOLERANCE, cases


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("what", [case.what for case in cases("cpu")])
def test_gradients(device, what):
    (case,) = (case for case in cases(device) if case.what == what)
    for name, (error, largest) in case.errors().items():
        assert largest > 0.01, f"{name} is not tested"
        assert error < TOLERANCE, name
