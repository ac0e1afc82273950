"""An optimizer's counterexample as a few lines of code that run without natgrad.

All scripts on networks have the same one: failures of the contract do not depend on the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natgrad.testing.subjects.optimizer import Optimizer

Arguments = Mapping[str, Any]
STANDARD = "    loss.backward()\n"
NETWORK = (
    "import torch\n"
    "{imports}"
    "torch.manual_seed(0)\n"
    "model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))\n"
    "x, y = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])\n"
    "parameters = list(model.parameters())\n"
    "optimizer = {make}\n"
    "def closure():\n"
    "    optimizer.zero_grad()\n"
    "    loss = torch.nn.functional.cross_entropy(model(x), y)\n"
    "{backward}"
    "    return loss\n"
)
COPY = (
    "import {module}\n"
    "optimizer.step(closure)\n"
    "model, optimizer = {copy}((model, optimizer)){end}\n"
    "optimizer.step(closure)\n"
)
FREEZE = (
    "optimizer.step(closure)\n"
    "frozen = model[0].weight.requires_grad_(False)\n"
    "frozen.grad, before = None, frozen.clone()\n"
    "optimizer.step(closure)\n"
    'print("a frozen weight moved by", float((frozen - before).norm()))\n'
)
STRIDES = (
    "model[0].weight = torch.nn.Parameter(torch.randn(3, 5).t())\n"
    "parameters = list(model.parameters())\n"
    "optimizer = {make}\n"
    "optimizer.step(closure)\n"
)
GRAPH = (
    "optimizer.step(closure)\n"
    'print("the graph on .grad:", [p.grad.grad_fn for p in parameters if p.grad is not None])\n'
)
BATCH = (
    "import gc, weakref\n"
    "optimizer.step(closure)\n"
    "gc.disable()\n"
    "def train(batch):\n"
    "    def closure():\n"
    "        optimizer.zero_grad()\n"
    "        loss = torch.nn.functional.cross_entropy(model(batch), y)\n"
    "{backward}"
    "        return loss\n"
    "    optimizer.step(closure)\n"
    "    return weakref.ref(batch)\n"
    'print("the batch is still alive after its step:", train(x.clone())() is not None)\n'
)
TWO = (
    "import tempfile, torch.distributed as dist, torch.multiprocessing as mp\n"
    "def train(rank, path):\n"
    "    global optimizer, parameters, model, x, y\n"
    "    torch.set_num_threads(1)  # OpenMP's threads do not come along with a fork\n"
    '    dist.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)\n'
    "    model = torch.nn.parallel.DistributedDataParallel(model)\n"
    "    parameters, x, y = list(model.parameters()), x[rank::2], y[rank::2]\n"
    "    optimizer = {make}\n"
    "    optimizer.step(closure)\n"
    "    optimizer.step(closure)\n"
    "    print(rank, [round(float(p.norm()), 6) for p in parameters], flush=True)\n"
    'mp.start_processes(train, (tempfile.mktemp(),), nprocs=2, start_method="fork")\n'
)
MINIMISE = (
    "x = torch.nn.Parameter(x)\n"
    "parameters = [x]\n"
    "optimizer = {make}\n"
    "def closure():\n"
    "    optimizer.zero_grad()\n"
    "    loss = f(x)\n"
    "{backward}"
    "    return loss\n"
    "for _ in range({steps}):\n"
    "    optimizer.step(closure)\n"
    "print(x.tolist())\n"
)
SCENES: dict[str, str] = {
    "P1b": COPY.format(module="copy", copy="copy.deepcopy", end=""),
    "P1c": COPY.format(module="pickle", copy="pickle.loads(pickle.dumps", end=")"),
    "P2": "torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)\n",
    "P2b": (
        'optimizer.step(closure)\noptimizer.param_groups[0]["lr"] = 0.0\noptimizer.step(closure)\n'
    ),
    "P4": "optimizer.step(closure)\n",
    "P5b": FREEZE,
    "P8": STRIDES,
    "P10": GRAPH,
    "P17b": BATCH,
    "P19": TWO,
}


def optimizer_script(identifier: str, arguments: Arguments, subject: Optimizer) -> str | None:
    """The counterexample of a failed check on an optimizer as a script.

    Parameters
    ----------
    identifier
        The check's identifier.
    arguments
        The failed case, by argument of the check.
    subject
        The optimizer.

    Returns
    -------
    str or None
        The script; None where the optimizer has no ``script``, or the check no scene.
    """
    if not subject.script:
        return None
    imports, _, make = subject.script.rpartition("\n")
    bare = "closure" not in subject.offers and identifier != "P4"
    words = {
        "imports": imports + "\n" if imports else "",
        "make": make,
        "backward": "" if bare else STANDARD,
    }
    objective = arguments.get("objective")
    if objective is not None:
        steps = 50 if identifier.startswith("P14") else 2
        rest = MINIMISE.format(**words, steps=steps)
        code: str = objective.code()
        return code.replace("import torch\n", "import torch\n" + words["imports"], 1) + rest
    scene = SCENES.get(identifier)
    if scene is None:
        return None
    inner = "" if bare else "    " + STANDARD
    filled = scene.replace("{make}", make).replace("{backward}", inner)
    return NETWORK.format(**words) + filled
