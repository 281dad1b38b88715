"""Pre-trains a tiny vision transformer for benchmarks/accuracy.py --study peft, on images that the study never sees.

    python benchmarks/pretrain_vit.py                     # writes results/vit-digits.safetensors
    python benchmarks/accuracy.py --study peft --check

It learns to tell the digits of the data set digits_pretraining, a third of the training images of digits, whose other
two thirds are digits_two_domains.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reprise.benchmarks.studies import VIT, WEIGHTS_FILE

RECIPE = "[{'optimizer': 'AdamW', 'lr': 0.002, 'weight_decay': 0.05, 'schedule': 'cosine', 'lr_min': 1e-5}]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", default="60", help="(60)")
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE, help=f"({WEIGHTS_FILE})")
    chosen = parser.parse_args(argv)
    from reprise import main as program

    with tempfile.TemporaryDirectory() as folder:
        words = ["--dataset", "digits_pretraining", "--model", "Vanilla", "--backbone", "vit", "--backbone-config", VIT]
        words += ["--epochs", chosen.epochs, "--optimizer-regime", RECIPE, "--results-dir", folder, "--save-dir", "run"]
        if code := program.main(words):
            return code
        _keep(Path(folder) / "run" / "checkpoints" / "task_00" / "model.pt", chosen.output)
    print(f"weights: {chosen.output}")
    return 0


def _keep(checkpoint: Path, output: Path) -> None:
    """Write the backbone's weights, without its head."""
    import torch
    from safetensors.torch import save_file

    network = torch.load(checkpoint, weights_only=True)["network"]
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value for name, value in network.items() if not name.startswith("head.")}, output)


if __name__ == "__main__":
    sys.exit(main())
