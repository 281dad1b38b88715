"""A strategy between its two baselines: what each had learnt after how much training time.

    python benchmarks/baselines.py --np 2 -- --config demo-er
    python benchmarks/baselines.py --np 8 --launcher mpirun -- --dataset cifar100 --backbone resnet18 --model Er ...

Trains three times with the options of main.py after "--": as they are; `incremental`, every task on its own data alone,
which forgets; and `scratch`, every task anew on all data so far, which is right but slow (config.yaml has both). Their
folders, the three options files and the picture accuracy_against_time.png lie in --results-dir.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from reprise.benchmarks.job import positive
from reprise.report import __main__ as report
from reprise.runtime.config_text import read_section
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors
from reprise.tests.parallel import launch
from reprise.train.options import DEFAULT_YAML, parse

MAIN = Path(__file__).parents[1] / "main.py"
PICTURE = "accuracy_against_time.png"
BASELINES = ("incremental", "scratch")


def configurations(options: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Name of a run -> its section for --yaml-config. UserError for a mistake in the options, or for Vanilla."""
    resolved = parse(options)
    name = resolved.options.model
    if name == "Vanilla":
        raise UserError("model 'Vanilla' is what the baselines are made of; choose a strategy, e.g. --model Er")
    for key, value in (
        ("task_free", resolved.options.tasksets_config.task_free),
        ("load_checkpoint", resolved.options.load_checkpoint),
    ):
        if value:
            raise UserError(f"{key} {value}: the baselines need whole tasks from the first one on; leave it out")
    own: dict[str, Any] = yaml.safe_load(resolved.to_yaml())["run"]
    own |= {"results_dir": str(folder), "training_only": False}
    runs = {name: {**own, "save_dir": name}}
    for baseline in BASELINES:
        section = read_section(DEFAULT_YAML, baseline)
        tasks = {**(own["tasksets_config"] or {}), **section["tasksets_config"]}
        runs[baseline] = {**own, **section, "tasksets_config": tasks, "buffer_config": {}, "save_dir": baseline}
    return runs


def train(name: str, section: dict[str, Any], chosen: argparse.Namespace) -> None:
    """One run; SystemExit with what it said when it fails."""
    options = chosen.results_dir / f"{name}.yaml"
    with atomic_write(options) as stream:
        yaml.safe_dump({"run": section}, stream)
    launcher = "python" if chosen.np == 1 else chosen.launcher
    job = [str(MAIN), "--yaml-config", str(options), "--config", "run"]
    try:
        finished = launch.run(launcher, chosen.np, job, timeout=chosen.timeout)
    except launch.JobTimeoutError as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}; raise --timeout") from error
    if finished.returncode:
        sys.stderr.write(finished.output[-4000:])
        raise SystemExit(finished.returncode)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--np", type=positive, default=1, help="ranks on this machine (1)")
    parser.add_argument("--launcher", default="horovodrun", choices=("horovodrun", "mpirun", "torchrun"))
    parser.add_argument("--results-dir", type=Path, default=Path("results/baselines"), help="(results/baselines)")
    parser.add_argument("--timeout", type=float, default=86_400, help="seconds that one run may take (a day)")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="options of main.py")
    chosen = parser.parse_args(argv)
    try:
        runs = configurations(chosen.options, chosen.results_dir)
        if chosen.np > 1 and chosen.launcher not in launch.available():
            raise UserError(f"{chosen.launcher} is not installed; choose one of: {', '.join(launch.available())}")
        with disk_errors("create", chosen.results_dir):
            chosen.results_dir.mkdir(parents=True, exist_ok=True)
        for number, (name, section) in enumerate(runs.items(), start=1):
            print(f"{number} of {len(runs)}: {name}", flush=True)
            train(name, section, chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    picture = chosen.results_dir / PICTURE
    code = report.main([*(str(chosen.results_dir / name) for name in runs), "--picture", str(picture)])
    if not code:
        print(f"Picture: {picture}")
    return code


if __name__ == "__main__":
    sys.exit(main())
