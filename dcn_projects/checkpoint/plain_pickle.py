"""
Pickles of numbers, texts and plain containers. The standard library calls whatever function a
pickle names; this reader knows the few that make arrays and tensors, and calls nothing else.
"""

import pickletools
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

__all__ = ["Named", "PickledObjectError", "check_size", "read_plain_pickle"]

# Values that one step of a pickle leaves on the stack.
_VALUES = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8".split()
)
_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
# A step takes at most half a kilobyte of memory. Checkpoints have 30 steps for each array, ...
_MIN_STEPS = 200_000
_BYTES_PER_STEP = 32  # ... and lists of small arrays more bytes for each step than this
_MAX_DEPTH = 64  # of containers in one another
_MAX_INT = 2**62


class PickledObjectError(ValueError):
    """A pickle needs a class or function that is not read."""


class Named(NamedTuple):
    """
    A class or function that a pickle names.

    Args:
        name: in full
        call: what stands in for it; None if it is only named
    """

    name: str
    call: Callable | None


def check_size(*values) -> None:
    """Raises ValueError if what a pickle has for sizes are no whole numbers from 0 on."""
    for value in values:
        if type(value) is not int or not 0 <= value <= _MAX_INT:
            raise ValueError(f"a {type(value).__name__} is no size")


def read_plain_pickle(
    file,
    size: int,
    find: Callable[[str, str], object],
    set_state: Mapping[type, Callable],
    find_stored: Callable | None = None,
):
    """
    Read one pickle of any protocol. Texts of Python 2 are taken for Latin-1, as detectron2 does.
    What is read takes at most 30 times `size` and 100 MB, as the number of steps is limited.

    Args:
        file: with `read` and `readline`, of bytes; it stands behind the pickle afterwards
        size: bytes of the file
        find: module and name -> a `Named`, or a value; raises PickledObjectError for others
        set_state: type of an object that is not yet complete -> what is called with the object, and
            with the state that the pickle has for it
        find_stored: tuple -> what is stored outside of the pickle
    Returns:
        what was pickled, without attributes of containers
    Raises:
        PickledObjectError: if it needs another class or function
        Exception: of any kind if it is cut off or damaged, see `errors_that_name`
    """
    machine = _Machine(find, set_state, find_stored)
    most = _MIN_STEPS + size // _BYTES_PER_STEP
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > most:
            raise ValueError(f"more than {most} steps for {size} bytes")
        machine.step(opcode.name, argument)
    (content,) = machine.stack
    num_values, _ = _measure(content, {}, 0)
    if num_values > most:
        raise ValueError(f"more than {most} values for {size} bytes, with repeated ones")
    return content


class _Machine:
    """The stack and the memory that the steps of a pickle change."""

    def __init__(self, find: Callable, set_state: Mapping, find_stored: Callable | None):
        self.find, self.set_state, self.find_stored = find, set_state, find_stored
        self.stack, self.marks, self.memo = [], [], {}

    def step(self, name: str, argument) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _GET:
            self.stack.append(self.memo[argument])
        elif name in _PUT:
            self.memo[argument] = self.stack[-1]
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise PickledObjectError(f"a class, by {name}")
            method(argument)

    def pop(self):
        """The last value, which must be one since the last mark."""
        if self.marks and self.marks[-1] >= len(self.stack):
            raise ValueError("a value is missing")
        return self.stack.pop()

    def pop_to_mark(self) -> list:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def do_mark(self, _):
        self.marks.append(len(self.stack))

    def do_memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def do_pop(self, _):
        self.pop()

    def do_tuple(self, _):
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _):
        self.stack.append((self.pop(),))

    def do_tuple2(self, _):
        last = self.pop()
        self.stack.append((self.pop(), last))

    def do_tuple3(self, _):
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def do_list(self, _):
        self.stack.append(self.pop_to_mark())

    def do_append(self, _):
        self._extend([self.pop()])

    def do_appends(self, _):
        self._extend(self.pop_to_mark())

    def _extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("no list to append to")
        self.stack[-1].extend(values)

    def do_additems(self, _):
        values = self.pop_to_mark()
        if type(self.stack[-1]) is not set:
            raise ValueError("no set to add to")
        self.stack[-1].update(map(_key, values))

    def do_dict(self, _):
        values = self.pop_to_mark()
        self.stack.append({})
        self._set(values)

    def do_setitem(self, _):
        value = self.pop()
        self._set([self.pop(), value])

    def do_setitems(self, _):
        self._set(self.pop_to_mark())

    def _set(self, values: list) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise ValueError("no dictionary to set items of")
        for key, value in zip(values[::2], values[1::2]):
            self.stack[-1][_key(key)] = value

    def do_global(self, argument):
        self.stack.append(self.find(*argument.split(" ", 1)))

    def do_stack_global(self, _):
        name = self.pop()
        self.stack.append(self.find(str(self.pop()), str(name)))

    def do_reduce(self, _):
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Named) or type(arguments) is not tuple:
            raise ValueError("no function to call")
        if function.call is None:
            raise PickledObjectError(function.name)
        self.stack.append(function.call(*arguments))

    do_newobj = do_reduce

    def do_build(self, _):
        state = self.pop()
        if set_state := self.set_state.get(type(self.stack[-1])):
            set_state(self.stack[-1], state)
        elif not isinstance(self.stack[-1], dict):  # of which attributes are left out
            raise ValueError("nothing to give a state to")

    def do_binpersid(self, _):
        key = self.pop()
        if self.find_stored is None or type(key) is not tuple:
            raise PickledObjectError("something outside of the file")
        self.stack.append(self.find_stored(*key))


def _key(value) -> Hashable:
    """Other keys could take very long to compare, or more of the stack than there is."""
    if type(value) is str or type(value) is bool or type(value) is int and abs(value) < _MAX_INT:
        return value
    raise PickledObjectError(f"a {type(value).__name__} as the key of a dictionary")


def _measure(value, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """
    How many values there are, with those that are in several places counted there, and how deep
    they are in one another. What goes through all of them must come to an end.
    """
    if isinstance(value, Named):
        raise PickledObjectError(value.name)
    if not isinstance(value, (dict, list, tuple, set)):
        return 1, 0
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        if depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} containers in one another")
        measured = [_measure(part, known, depth + 1) for part in parts]
        total = 1 + sum(size for size, _ in measured)
        height = 1 + max((height for _, height in measured), default=0)
        known[id(value)] = total, height
    return known[id(value)]
