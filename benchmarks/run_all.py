"""
Tests of the operators, then the tables of all bm_*.py beside this file, in one go: writes
results/<machine>.md and .json. Each part is a process of its own with a time limit; what it has
measured until then is kept.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
TESTS = "tests/layers"
# Seconds. A GPU is lent by the minute: all together in about eight of them.
LIMITS = {
    "cuda": {TESTS: 120, "bm_deform_conv.py": 270, "others": 50},
    "cpu": {TESTS: 1800, "bm_deform_conv.py": 1200, "others": 600},
}


def run(command: list[str], limit: float) -> dict:
    """
    Returns:
        dict: status, seconds and the end of what was printed
    """
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=measure.ROOT,
        env=measure.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=limit)
        status = "passed" if process.returncode == 0 else f"failed ({process.returncode})"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        status = f"stopped after {limit} s"
    seconds = round(time.time() - start, 1)
    return {"status": status, "seconds": seconds, "output": output[-4000:]}


def run_tests(args: argparse.Namespace, limit: float) -> dict:
    marker = "gpu" if args.device == "cuda" else "not gpu"
    return run(
        ["-m", "pytest", "-q", "--tb=short", "-p", "no:warnings", "-m", marker, TESTS], limit
    )


def run_benchmark(program: Path, args: argparse.Namespace, limit: float) -> dict:
    command = [str(program), "--device", args.device, "--dtype", args.dtype]
    command += ["--threads", str(args.threads)]
    command += ["--rounds", str(args.rounds)] if args.rounds else []
    command += ["--quick"] if args.quick else []
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers.json"
        part = run([*command, "--json", str(numbers)], limit)
        if numbers.exists():
            part["report"] = json.loads(numbers.read_text())
    return part


def to_markdown(name: str, part: dict) -> str:
    text = f"# {name}\n\n{part['status']}, {part['seconds']:.0f} s\n"
    report = part.get("report", {"header": {}, "tables": []})
    if report["header"]:
        text += f"\n{measure.bullets(report['header'])}\n"
    for table in report["tables"]:
        text += f"\n{measure.markdown(table)}"
    if name == TESTS:
        text += "\n" + part["output"].rstrip().splitlines()[-1].strip("= ") + "\n"
    if part["status"] != "passed":
        text += f"\nThe end of its output:\n\n```\n{part['output'].strip()}\n```\n"
    return text


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser)
    parser.add_argument("--name", help="of the files; default: that of the GPU or CPU")
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args()
    name = args.name or measure.machine_name(args.device)
    output = HERE / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    output.parent.mkdir(exist_ok=True)
    limits = LIMITS[args.device]

    parts = {}

    def keep(part_name: str, part: dict):
        parts[part_name] = part
        text = "\n".join(to_markdown(*item) for item in parts.items())
        output.with_suffix(".md").write_text(text)
        output.with_suffix(".json").write_text(json.dumps(parts, indent=1))
        print(f"{part_name}: {part['status']}, {part['seconds']:.0f} s", flush=True)

    if not args.skip_tests:
        keep(TESTS, run_tests(args, limits[TESTS]))
    for program in sorted(HERE.glob("bm_*.py")):
        limit = limits.get(program.name, limits["others"])
        keep(program.name, run_benchmark(program, args, limit))
    print(f"written: {output}.md, {output}.json")
    return any(part["status"] != "passed" for part in parts.values())


if __name__ == "__main__":
    sys.exit(main())
