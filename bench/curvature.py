"""Curvature products in units of one gradient, ours and the peers': four models, time and memory.

    .venv/bin/python bench/curvature.py --threads 1
    .venv/bin/python bench/curvature.py --threads 2     fills the other half of the same file

The unit g is one gradient (forward and backward) of the same model and batch, as a user takes it.
All contestants of a model live in one process and run in turn, round after round; a figure is the
median over the rounds of (time of the contestant / time of the gradient in the same round). Peak
memory is taken in a fresh process each: what torch allocates above the resting state (model, data
and vector) for the set-up and three calls, in units of the gradient's.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from operator import matmul
from pathlib import Path
from typing import Any

import torch
import tyro
from curvlinops import GGNLinearOperator, HessianLinearOperator, KFACLinearOperator
from curvlinops.inverse import KFACInverseLinearOperator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from natgrad import Fisher
from natgrad.curvature import GaussNewton, Hessian, Kronecker
from natgrad.curvature.metrics import cross_entropy
from natgrad.flat import flatten, unflatten

GRADIENT = "gradient"
WIDTH, HEADS, LENGTH, VOCABULARY = 256, 4, 128, 65
NOTES = [
    "float32, random weights and data, no dropout; attention is fused unless said otherwise.",
    "Medians and interquartile ranges are of ratios to the gradient of the same round; the "
    "gradient's own range is that of its seconds over their median.",
    "Products and solves are timed warm; rows that say set-up include it.",
    "Peak memory is what torch allocates, without what oneDNN keeps to itself in a convolution.",
    "Chunks are an eighth of the batch; of the transformer's 4 sequences, one.",
    "ResNet-18: BatchNorm in evaluation mode; the peers' products would move its statistics.",
    "Transformer: no position embedding, no tied weights. Fused attention has no second "
    "derivative and no forward mode: ours records anew with the plain kernel at the first product ("
    "'set-up' is without that, 'set-up and first product' with it), peers and KL run under "
    "sdpa_kernel(MATH), as does 'gradient, plain attention'.",
    "MLPs: the policy's log std is among the parameters of the gradient, Fisher, the KL and our "
    "K-FAC. curvlinops' GGN and K-FAC, and both Hessians, are of MSELoss on the mean, without it.",
    "curvlinops' operators have check_deterministic=False, which only spares them work.",
    "K-FAC: one sampled label, weight and bias together, exact damping, whose eigenvectors are "
    "found in the first solve: ours in float64, curvlinops' in float32.",
]


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    threads: int = 1
    """Threads of torch. What the file holds for another number of them stays."""
    rounds: int = 9
    """Rounds over all contestants of a model."""
    out: Path = Path(__file__).parent / "results" / "curvature.json"
    """Where the figures go."""
    probe: tuple[str, str] | None = None
    """MODEL CONTESTANT: only print its peak memory in bytes. A run calls itself so."""


class Policy(nn.Module):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        layers = [layer for i, o in pairs for layer in (nn.Linear(i, o), nn.Tanh())]
        self.network = nn.Sequential(*layers[:-1])
        self.log_std = nn.Parameter(torch.zeros(sizes[-1]))

    def forward(self, x: Tensor) -> Distribution:
        mean = self.network(x)
        scale = self.log_std.exp().expand_as(mean)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class Residual(nn.Module):
    def __init__(self, *body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = nn.Sequential(*body), skip or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.skip(x) + self.body(x)
        return output


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
    kernel = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(outputs).eval())


def resnet_18() -> nn.Module:
    layers: list[nn.Module] = [convolution(3, 64, 3, 1), nn.ReLU()]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    for i, o in itertools.pairwise(widths):
        stride = 1 if i == o else 2
        body = convolution(i, o, 3, stride), nn.ReLU(), convolution(o, o, 3, 1)
        layers += [Residual(*body, skip=None if i == o else convolution(i, o, 1, 2)), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


def transformer(depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Embedding(VOCABULARY, WIDTH)]
    for _ in range(depth):
        wide, narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        layers += [Residual(nn.LayerNorm(WIDTH), Attention())]
        layers += [Residual(nn.LayerNorm(WIDTH), wide, nn.GELU(), narrow)]
    head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
    return nn.Sequential(*layers, *head, nn.Flatten(0, 1))  # one row a token


@dataclass(frozen=True)
class Problem:
    """A batch and a ``network``, whose outputs ``criterion`` takes and ``forward`` makes
    distributions of. A policy's log std is the last of the ``parameters``, after the network's."""

    network: nn.Module
    forward: Callable[[Tensor], Distribution]
    parameters: list[nn.Parameter]
    x: Tensor
    targets: Tensor
    criterion: nn.Module
    v: Tensor


def control(*sizes: int) -> Problem:
    policy, x = Policy(sizes), torch.randn(2048, sizes[0])
    parameters = [*policy.network.parameters(), policy.log_std]
    actions = policy(x).sample()
    return Problem(policy.network, policy, parameters, x, actions, nn.MSELoss(), vector(policy))


def classification(model: nn.Module, x: Tensor, labels: Tensor) -> Problem:
    def forward(x: Tensor) -> Distribution:
        return Categorical(logits=model(x), validate_args=False)

    parameters, criterion = list(model.parameters()), nn.CrossEntropyLoss()
    return Problem(model, forward, parameters, x, labels, criterion, vector(model))


def vector(model: nn.Module) -> Tensor:
    return torch.randn(sum(parameter.numel() for parameter in model.parameters()))


Call = Callable[[], object]
Contestant = Callable[[Problem], Call]


def gradient(p: Problem) -> object:
    loss = -p.forward(p.x).log_prob(p.targets).mean()
    return torch.autograd.grad(loss, p.parameters)


def times(operator: Any, p: Problem) -> Call:
    return partial(matmul, operator, p.v[: operator.shape[0]])


def fisher(p: Problem) -> Fisher:
    return Fisher(p.forward, p.parameters, data=p.x)


def fisher_in_chunks(p: Problem, repeats: int = 1) -> Call:
    x, chunk = torch.cat([p.x] * repeats), max(1, len(p.x) // 8)
    return times(Fisher(p.forward, p.parameters, data=x, chunk_size=chunk), p)


def gauss_newton(p: Problem) -> Call:
    metric = partial(cross_entropy, dim=-1)
    return times(GaussNewton(p.network, p.parameters, metric, data=p.x), p)


def hessian(p: Problem) -> Call:
    parameters = p.network.parameters()
    H = Hessian(lambda x: p.criterion(p.network(x), p.targets), parameters, data=p.x)
    return times(H, p)


def kfac(p: Problem) -> Kronecker:
    assert isinstance(p.forward, Policy)
    generator = torch.Generator().manual_seed(2)
    return Kronecker(p.forward, p.x, parameters=p.parameters, samples=1, generator=generator)


def curvlinops(kind: Callable[..., Any], p: Problem, **settings: Any) -> Any:
    parameters, data = list(p.network.parameters()), [(p.x, p.targets)]
    settings |= {"check_deterministic": False, "num_data": len(p.x)}
    return kind(p.network, p.criterion, parameters, data, **settings)


def curvlinops_kfac(p: Problem) -> Any:
    settings = {"num_per_example_loss_terms": 1, "separate_weight_and_bias": False}
    factors = curvlinops(KFACLinearOperator, p, **settings)
    factors.compute_kronecker_factors()
    return KFACInverseLinearOperator(factors, damping=0.1, use_exact_damping=True)


def double_backward(p: Problem, keep: bool) -> Call:
    pieces = unflatten(p.v, p.parameters)
    with torch.no_grad():
        old = p.forward(p.x)

    def gradients() -> tuple[Tensor, ...]:
        kl = kl_divergence(old, p.forward(p.x)).mean()
        return torch.autograd.grad(kl, p.parameters, create_graph=True)

    kept = gradients() if keep else None
    return lambda: flatten(
        torch.autograd.grad(kept or gradients(), p.parameters, pieces, retain_graph=keep)
    )


def afresh(name: str, p: Problem) -> Call:
    """A contestant with its set-up in every call."""

    def both() -> object:
        return CONTESTANTS[name](p)()

    return both


CONTESTANTS: dict[str, Contestant] = {
    GRADIENT: lambda p: partial(gradient, p),
    "gradient, plain attention": lambda p: partial(gradient, p),
    "Fisher, set-up": lambda p: partial(fisher, p),
    "Fisher, set-up and first product": partial(afresh, "Fisher, product"),
    "Fisher, product": lambda p: times(fisher(p), p),
    "Fisher, product in chunks": fisher_in_chunks,
    "Fisher, product in chunks, 2 N": partial(fisher_in_chunks, repeats=2),
    "Gauss-Newton, product": gauss_newton,
    "curvlinops GGN, product": lambda p: times(curvlinops(GGNLinearOperator, p), p),
    "double backward of the KL, kept graph": partial(double_backward, keep=True),
    "double backward of the KL, rebuilt": partial(double_backward, keep=False),
    "Hessian, product": hessian,
    "curvlinops Hessian, product": lambda p: times(curvlinops(HessianLinearOperator, p), p),
    "K-FAC, set-up": lambda p: partial(kfac, p),
    "K-FAC, set-up and first solve": partial(afresh, "K-FAC, solve"),
    "K-FAC, solve": lambda p: partial(kfac(p).solve, p.v, damping=0.1),
    "curvlinops K-FAC, set-up": lambda p: partial(curvlinops_kfac, p),
    "curvlinops K-FAC, set-up and first solve": partial(afresh, "curvlinops K-FAC, solve"),
    "curvlinops K-FAC, solve": lambda p: times(curvlinops_kfac(p), p),
}
# Each with what does not apply to it.
MODELS: dict[str, tuple[Callable[[], Problem], tuple[str, ...]]] = {
    "MLP 17-64-64-6, N = 2,048": (
        lambda: control(17, 64, 64, 6), ("Gauss-Newton", "plain attention"),
    ),
    "MLP 17-256-256-6, N = 2,048": (
        lambda: control(17, 256, 256, 6), ("Gauss-Newton", "plain attention"),
    ),
    "ResNet-18, N = 32": (
        lambda: classification(resnet_18(), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))),
        ("K-FAC", "plain attention"),
    ),
    "transformer 4 x 256, N = 4 x 128": (
        lambda: classification(
            transformer(4), torch.randint(VOCABULARY, (4, LENGTH)),
            torch.randint(VOCABULARY, (4 * LENGTH,)),
        ), ("K-FAC",),
    ),
}  # fmt: skip


def build(model: str) -> Problem:
    torch.manual_seed(0)
    return MODELS[model][0]()


def contestants(model: str) -> list[str]:
    return [name for name in CONTESTANTS if not any(part in name for part in MODELS[model][1])]


def kernels(name: str) -> AbstractContextManager[Any]:
    theirs = ("curvlinops", "double backward", "gradient, plain attention")
    return sdpa_kernel(SDPBackend.MATH) if name.startswith(theirs) else nullcontext()


def peak_memory(model: str, name: str) -> int:
    """Bytes that torch held at once, above what there was before the set-up."""
    problem = build(model)
    activities = [ProfilerActivity.CPU]
    with kernels(name), profile(activities=activities, profile_memory=True) as profiler:
        call = CONTESTANTS[name](problem)
        for _ in range(3):
            call()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # The profiler counts from zero and leaves out blocks older than itself.
    return max(int(e["args"]["Total Allocated"]) for e in events if e["name"] == "[memory]")


def peak_memory_in_fresh_process(model: str, name: str, threads: int) -> int:
    command = [sys.executable, __file__, "--probe", model, name, "--threads", str(threads)]
    # Captured, since the profiler chatters on stderr.
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return int(done.stdout)


def seconds_by_round(model: str, rounds: int) -> dict[str, list[float]]:
    problem = build(model)
    calls: dict[str, Call] = {}
    for name in contestants(model):
        with kernels(name):
            calls[name] = CONTESTANTS[name](problem)
            calls[name]()
    # Small models run several times a turn: one call would pay for the caches its neighbour left.
    repeats = min(30, math.ceil(0.05 / min(timeit.repeat(calls[GRADIENT], number=1))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            with kernels(name):
                turn = timeit.repeat(call, number=1, repeat=repeats)
            seconds[name].append(statistics.median(turn))
    return seconds


def measure(model: str, arguments: Arguments) -> dict[str, dict[str, float]]:
    seconds = seconds_by_round(model, arguments.rounds)
    peaks = {name: peak_memory_in_fresh_process(model, name, arguments.threads) for name in seconds}
    unit = statistics.median(seconds[GRADIENT])
    rows: dict[str, dict[str, float]] = {}
    for name, values in seconds.items():
        units = [unit] * arguments.rounds if name == GRADIENT else seconds[GRADIENT]
        ratios = [value / g for value, g in zip(values, units, strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        memory = peaks[name] / peaks[GRADIENT]
        rows[name] = {"median_g": median, "iqr_g": upper - lower, "peak_memory_g": memory}
    rows[GRADIENT] |= {"median_seconds": unit, "peak_memory_bytes": peaks[GRADIENT]}
    return rows


def show(model: str, rows: dict[str, dict[str, float]]) -> None:
    milliseconds = rows[GRADIENT]["median_seconds"] * 1e3
    mebibytes = rows[GRADIENT]["peak_memory_bytes"] / 2**20
    title = f"{model}: g = {milliseconds:,.1f} ms, {mebibytes:,.1f} MiB"
    table = Table("contestant", "median, g", "IQR, g", "peak memory, g", title=title)
    for name, row in rows.items():
        keys = ("median_g", "iqr_g", "peak_memory_g")
        table.add_row(name, *(f"{row[key]:.2f}" for key in keys))
    Console().print(table)


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    if arguments.probe is not None:
        print(peak_memory(*arguments.probe))
        return
    results = {}
    for model in MODELS:
        results[model] = measure(model, arguments)
        show(model, results[model])

    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    command = f"python bench/curvature.py --threads {arguments.threads}"
    others = [c for c in old.get("command", "").split(" && ") if c and not c.startswith(command)]
    packages = ("torch", "curvlinops-for-pytorch")
    record = {
        "command": " && ".join(sorted([*others, f"{command} --rounds {arguments.rounds}"])),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "threads": old.get("threads", {}) | {str(arguments.threads): results},
        "notes": NOTES,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
