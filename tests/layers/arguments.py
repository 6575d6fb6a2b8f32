"""
The lists of numbers among the arguments of the operators. The int[2] of a schema limits neither
their lengths nor their numbers, so that each kernel has to check them.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch.testing import assert_close

from dcn_projects.layers import fallback
from tests.layers import operators

# Below and above all that is taken. What is large and taken is left out: such results need more
# memory than there is.
NUMBERS = [0, 1, 2, 3, 5, -1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)]


@functools.cache
def calls_with_lists() -> dict[str, tuple[list, list[int]]]:
    """Name of an operator, derivatives too -> arguments, and the places of lists among them."""
    found = {}
    for public in operators.library.PUBLIC_OPERATORS:
        for name, arguments, _ in operators.recorded_calls(public):
            places = [i for i, value in enumerate(arguments) if isinstance(value, Sequence)]
            places = [i for i in places if not isinstance(arguments[i], str)]
            if places:
                found[name] = (list(arguments), places)
    return found


def kernels(name: str) -> dict[str, Callable]:
    """The kernel in use, that of the fallback, and the fake one."""
    op = getattr(torch.ops.dcn_projects, name)

    def fake(*arguments):
        return op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))

    return {"op": op, "fallback": fallback.kernel(name), "fake": fake}


def outcomes(name: str, arguments: list) -> dict:
    """Kernel -> its results, a list of tensors, or the text of its error."""
    found = {}
    for kernel, function in kernels(name).items():
        try:
            result = function(*arguments)
        except (RuntimeError, ValueError) as error:
            found[kernel] = str(error)
        else:
            found[kernel] = [result] if isinstance(result, torch.Tensor) else list(result)
    return found


def check_lists(name: str, arguments: list) -> bool:
    """
    Whether the operator takes the arguments. All kernels must say the same: either a result that
    agrees, or an error of one line.
    """
    found = outcomes(name, arguments)
    texts = {text for text in found.values() if isinstance(text, str)}
    # The fake kernel has neither the memory nor the index of a RoI.
    if any("memory" in text or " is on image " in text for text in texts):
        del found["fake"]
    if texts:
        assert all(found[kernel] in texts for kernel in found), (name, arguments, found)
        assert len(texts) == 1 or "must be two numbers" not in "".join(texts), texts
        assert not any("\n" in text for text in texts), texts
        return False
    for result, expected, fake in zip(*found.values(), strict=True):
        assert_close(result, expected, rtol=1e-9, atol=1e-9)
        assert fake.shape == result.shape and fake.dtype == result.dtype
    return True


def fuzz_case(choose: Callable) -> tuple[str, dict[int, list]]:
    """A name of `calls_with_lists`, and new lists for some places among the arguments."""
    calls = calls_with_lists()
    name = choose(list(calls))
    arguments, places = calls[name]
    places = [place for place in places if choose([True, False])]
    return name, {place: changed_list(choose, list(arguments[place])) for place in places}


def changed_list(choose: Callable, numbers: list) -> list:
    length = choose([len(numbers)] * 4 + [*range(6)])
    numbers = (numbers + [1] * length)[:length]
    return [choose(NUMBERS) if choose([True, False]) else number for number in numbers]


def check(case, device, expected_results) -> int:
    name, lists = case
    arguments = [
        value.to(device) if isinstance(value, torch.Tensor) else value
        for value in calls_with_lists()[name][0]
    ]
    for place, numbers in lists.items():
        arguments[place] = numbers
    check_lists(name, arguments)
    return 1


FUZZ = (fuzz_case, check, 200)
