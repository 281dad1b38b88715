"""Does the learning result depend on the number of workers? The same job on 1, 2 and 4 ranks, several seeds each.

    python benchmarks/number_of_ranks.py --check --json ranks.json

Digits, five tasks of two classes, experience replay: the same batch, draws, candidates and capacity over all ranks, the
same learning rate, whatever the number of ranks, once with draws from all ranks and once with scope local. Prints mean
and standard deviation of the average accuracy; --check compares the means (scope global within 0.02 of each other).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from reprise.benchmarks.show import console, table
from reprise.runtime.files import atomic_write
from reprise.tests.parallel import launch

MAIN = Path(__file__).parents[1] / "main.py"
BATCH = 32  # samples over all ranks, of which each rank takes an equal part; so do draws and candidates
LEARNING_RATE = 0.05  # over all ranks: main.py multiplies by their number
WITHIN = 0.02
LIMIT_S = 300.0


def train(ranks: int, scope: str, seed: int, epochs: int, folder: Path) -> float:
    """Average accuracy of one run."""
    share = BATCH // ranks
    name = f"{scope}-{ranks}-{seed}"
    buffer = f"rehearsal_ratio=10 num_representatives={share} num_candidates={share} deterministic=true scope={scope}"
    job = [MAIN, "--dataset", "digits", "--backbone", "mlp", "--model", "Er", "--tasksets-config", "increment=2"]
    job += ["--batch-size", str(share), "--epochs", str(epochs), "--warmup-epochs", "0", "--seed", str(seed)]
    job += ["--lr", str(LEARNING_RATE / ranks), "--buffer-config", buffer]
    job += ["--results-dir", str(folder), "--save-dir", name]
    launcher = "python" if ranks == 1 else "torchrun"
    done = launch.run(launcher, ranks, [str(part) for part in job], {"OMP_NUM_THREADS": "1"}, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{name} ended with code {done.returncode}\n{done.output[-2000:]}")
    accuracy: float = json.loads((folder / name / "summary.json").read_text())["average_accuracy"]
    return accuracy


def measure(chosen: argparse.Namespace, out: Console) -> dict[str, Any]:
    accuracies: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scope in chosen.scopes:
            for ranks in chosen.ranks:
                if ranks == 1 and scope == "local":
                    continue  # the same as global
                out.print(f"[dim]scope {scope}, {ranks} rank(s)[/dim]")
                runs = [train(ranks, scope, seed, chosen.epochs, Path(folder)) for seed in range(chosen.seeds)]
                accuracies.setdefault(scope, {})[str(ranks)] = runs
    return {"command": sys.argv, "cores": psutil.cpu_count(), "epochs": chosen.epochs, "accuracies": accuracies}


def show(results: dict[str, Any], out: Console) -> None:
    rows = []
    for scope, by_ranks in results["accuracies"].items():
        for ranks, runs in by_ranks.items():
            spread = statistics.stdev(runs) if len(runs) > 1 else 0.0
            each = " ".join(f"{run:.3f}" for run in runs)
            rows.append((scope, ranks, f"{statistics.mean(runs):.4f}", f"{spread:.4f}", each))
    table("Average accuracy, digits, ER", ("scope", "ranks", "mean", "std", "seeds 0, 1, ..."), rows, out, left=1)


def verdict(results: dict[str, Any], out: Console) -> bool:
    """Whether the means of scope global lie within WITHIN of each other."""
    means = [statistics.mean(runs) for runs in results["accuracies"].get("global", {}).values()]
    if len(means) < 2:
        out.print("Nothing to compare: scope global needs at least two numbers of ranks.")
        return False
    apart = max(means) - min(means)
    out.print(f"Means of scope global are {apart:.4f} apart, at most {WITHIN}: {'pass' if apart <= WITHIN else 'FAIL'}")
    return apart <= WITHIN


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], choices=(1, 2, 4, 8))
    parser.add_argument("--scopes", nargs="+", default=["global", "local"], choices=("global", "local"))
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (5)")
    parser.add_argument("--epochs", type=int, default=10, help="of each task (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--check", action="store_true", help="exit with 1 when the means are too far apart")
    chosen = parser.parse_args(argv)
    out = console()
    results = measure(chosen, out)
    show(results, out)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            json.dump(results, stream, indent=1)
    good = verdict(results, out)
    return 0 if good or not chosen.check else 1


if __name__ == "__main__":
    sys.exit(main())
