"""
The cases of test_fuzz.py in large numbers: a generator of random numbers draws them instead of
hypothesis, and the fallback's kernels say what is right instead of the slow reference, so that a
case takes milliseconds. Beside the operators there are `arguments`: calls of all schemas, also
derivatives, with lists of any length and any numbers.

    python -m tests.layers.fuzz_many --cases 1000000
    python -m tests.layers.fuzz_many --hours 1

For each seed one set of values of each kind is drawn; the operators are called with it several
times, in other memory layouts, dtypes and on other threads, and each call counts as a case. What
fails prints what repeats it, and the program goes on.
"""

import argparse
import random
import sys
import time
import traceback
from collections import Counter

import torch

from tests.layers import arguments, operators
from tests.layers.fuzzing import fallback_results

FUZZ = {**operators.having("FUZZ"), "arguments": arguments.FUZZ}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000, help="of all kinds together")
    parser.add_argument("--hours", type=float, default=float("inf"), help="how long at most")
    parser.add_argument("--seed", type=int, help="the first one; random without it")
    parser.add_argument("--kinds", nargs="+", choices=FUZZ, default=FUZZ, metavar="KIND")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**32)
    return options


def run_case(kind: str, seed: int, make_case, check) -> int | None:
    """How many calls were compared, None if one failed."""
    case = make_case(random.Random(seed).choice)
    try:
        return check(case, "cpu", fallback_results)
    except Exception:
        traceback.print_exc(limit=-3)
        print(f"{case}\nfailed: --cases 1 --kinds {kind} --seed {seed}", flush=True)
        return None


def main() -> int:
    options = parse_arguments()
    start, counts, failures, seconds = time.monotonic(), Counter(), Counter(), Counter()
    print(f"torch {torch.__version__}, first seed {options.seed}", flush=True)
    seed = options.seed
    while counts.total() < options.cases and time.monotonic() - start < options.hours * 3600:
        for kind in options.kinds:
            begin = time.monotonic()
            make_case, check, _ = FUZZ[kind]
            compared = run_case(kind, seed, make_case, check)
            seconds[kind] += time.monotonic() - begin
            failures[kind] += compared is None
            counts[kind] += compared or 1
        seed += 1
        if (seed - options.seed) % 1000 == 0:
            report(counts, failures, seconds)
    report(counts, failures, seconds)
    return int(failures.total() > 0)


def report(counts: Counter, failures: Counter, seconds: Counter) -> None:
    parts = [f"{k} {counts[k]} cases, {failures[k]} failed, {seconds[k]:.0f} s" for k in counts]
    print("; ".join(parts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
