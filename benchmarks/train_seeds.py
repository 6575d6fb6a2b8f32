#!/usr/bin/env python3
"""
Train configs with the same budget and several seeds, and tell whether they differ by more than the
seeds do.

    python benchmarks/train_seeds.py --json benchmarks/results/digits_rfcn.json --seeds 1 2 3 \\
        --configs configs/R-FCN/{rfcn,deformable_rfcn}_R_14_C5_digits.yaml --jobs 2 \\
        DATASETS.TRAIN "('digits_coco_hard_train',)" DATASETS.TEST "('digits_coco_hard_test',)"

Each run is a train_net.py of its own, in OUTPUT/<config>/<seed>; without a GPU it has one thread.
One that is complete is not run again; one that was interrupted goes on from its last checkpoint.
The JSON holds all metrics of all runs; means and standard deviations over the seeds are printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import torch

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75", "sem_seg/mIoU")


def train(config: Path, seed: int, folder: Path, options: list[str]) -> dict[str, dict]:
    """
    Returns:
        dict: the results of train_net.py, task -> metric -> value
    Raises:
        RuntimeError: if the training failed; names its log
    """
    command = [sys.executable, "train_net.py", "--config-file", str(config), "--resume"]
    options = [*options, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    arguments, results = folder / "arguments.json", folder / "results.json"
    complete = folder / "complete"  # there are results of every evaluation on the way, too
    if arguments.exists() and json.loads(arguments.read_text()) != options:
        raise RuntimeError(f"{folder} is of a run with other options: delete it or name another")
    arguments.write_text(json.dumps(options))
    if not complete.exists():
        with open(folder / "output.txt", "a") as log:
            environment = measure.environment() | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command + options, cwd=measure.ROOT, env=environment, stdout=log, stderr=log
            )
        if done.returncode != 0 or not results.exists():
            raise RuntimeError(f"training failed: see {log.name}")
        complete.touch()
    print(f"{config.stem}, seed {seed}: done", flush=True)
    return json.loads(results.read_text())


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(runs: dict[str, dict[str, dict]], metrics: list[str]) -> str:
    """
    Args:
        runs: config -> seed -> task -> metric -> value
        metrics: "task/metric"; those that no run has are left out
    """
    tasks = {config: next(iter(seeds.values())) for config, seeds in runs.items()}
    keys = [key.split("/") for key in metrics]
    keys = [
        (task, metric)
        for task, metric in keys
        if any(metric in of_config.get(task, {}) for of_config in tasks.values())
    ]
    lines = ["| config | " + " | ".join(" ".join(key) for key in keys) + " |"]
    lines.append("| --- |" + " --- |" * len(keys))
    for config, seeds in runs.items():
        cells = [
            mean_and_spread([r[task][metric] for r in seeds.values()])
            if metric in tasks[config].get(task, {})
            else ""
            for task, metric in keys
        ]
        lines.append(f"| {config} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--output", type=Path, default=Path("output/seeds"), help="for the runs")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), help="to be printed")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE for train_net.py")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, expected 1 or more")
    for config in args.configs:
        if not config.is_file():
            parser.error(f"no config {config} (KEY VALUE follow another option than --configs)")
    for metric in args.metrics:
        if metric.count("/") != 1:
            parser.error(f"--metrics takes task/metric, got {metric}. KEY VALUE go last of all")
    if len({config.stem for config in args.configs}) < len(args.configs):
        parser.error("--configs: two have the same file name, and would share a folder")
    if not args.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}")

    # Seeds in the outer loop: whatever is done when it is interrupted can be compared.
    jobs = [(config, seed) for seed in args.seeds for config in args.configs]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = [args.output.resolve() / config.stem / str(seed) for config, seed in jobs]
        futures = [
            pool.submit(train, config.resolve(), seed, folder, args.options)
            for (config, seed), folder in zip(jobs, folders, strict=True)
        ]
        results = [future.result() for future in futures]
    runs = {config.stem: {} for config in args.configs}
    for (config, seed), result in zip(jobs, results, strict=True):
        runs[config.stem][str(seed)] = result
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {
        "machine": measure.machine_name(device),
        "torch": torch.__version__,
        "options": args.options,
        "runs": runs,
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(runs, args.metrics))


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as e:
        sys.exit(f"error: {e}")
