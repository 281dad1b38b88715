"""One rank of a run of main.py that writes down what it has after each task: hashes of its modules, bytes it has sent.

Arguments: a folder for that, then main.py's.
"""

import hashlib
import json
import sys
from pathlib import Path

from reprise.cl_models.peft.tuned import Tuned
from reprise.main import main
from reprise.runtime.dist.launcher import detect
from reprise.train.grouped_gradients import GroupedGradients
from reprise.train.stepper import Stepper


def digest(tensors):
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


def watched(tasks, steps):
    """Patch the classes so that every task leaves an entry in `tasks`, every step one in `steps`."""
    grouped = []
    made = GroupedGradients.__init__

    def init(self, comm):
        made(self, comm)
        grouped.append(self)

    update = Stepper.update

    def updated(self):
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        steps.append({"sent": grouped[-1].bytes, "trained": sum(parameter.nbytes for parameter in trained)})
        update(self)

    consolidate = Tuned.consolidate

    def consolidated(self, task, samples):
        consolidate(self, task, samples)
        modules = {module: digest(self.bank.parameters_of(module)) for module in self.bank.tasks}
        tasks.append({"modules": modules, "heads": digest(self.heads.parameters())})

    GroupedGradients.__init__, Stepper.update, Tuned.consolidate = init, updated, consolidated


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    tasks, steps = [], []
    watched(tasks, steps)
    code = main(arguments)
    (Path(folder) / f"rank_{detect().rank}.json").write_text(json.dumps({"tasks": tasks, "steps": steps}))
    sys.exit(code)
