"""Every operator, solver, optimizer and algorithm on fixed inputs: the numbers that come out.

    python bench/fixed_steps.py --out FILE [--repeats N]

Names of the contract alone are used, so that the script runs against any revision that stands on
PYTHONPATH: bench/compare_revisions.py runs it against two and compares the files.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

import natgrad
import rl_plugins
from natgrad import optim
from natgrad.curvature import metrics
from natgrad.flat import flatten

Numbers = list[Any]
Subject = Callable[[], Callable[[], Numbers]]
SUBJECTS: dict[str, Subject] = {}
STEPS = 4
BUDGET = 0.5  # seconds for the timed repeats of a subject


def subject(name: str) -> Callable[[Subject], Subject]:
    """Register what sets a case up and returns the function whose numbers, and time, count."""

    def register(prepare: Subject) -> Subject:
        SUBJECTS[name] = prepare
        return prepare

    return register


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(inputs: int = 12, outputs: int = 5, *, seed: int = 0, convolve: bool = False) -> Any:
    layers = [nn.Linear(inputs, 24), nn.Tanh(), nn.Linear(24, outputs)]
    if convolve:
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
            parameter.copy_(random(*parameter.shape, seed=100 * seed + index) / fan**0.5)
    return model


X, LABELS = random(64, 12), torch.arange(64) % 5
IMAGES, TARGETS = random(64, 1, 6, 6, seed=1), random(64, 5, seed=2)


def operators() -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    def forward(model: nn.Module) -> Callable[[Tensor], Categorical]:
        return lambda x: Categorical(logits=model(x))

    def parameters(model: nn.Module) -> list[Tensor]:
        return list(model.parameters())

    yield "Fisher", lambda m: natgrad.Fisher(Categorical(logits=m(X)), parameters(m))
    yield "Fisher of a function", lambda m: natgrad.Fisher(forward(m), parameters(m), data=X)
    yield (
        "Fisher in chunks",
        lambda m: natgrad.Fisher(forward(m), parameters(m), data=X, chunk_size=24),
    )
    yield (
        "GaussNewton",
        lambda m: natgrad.GaussNewton(m(X), parameters(m), metrics.squared_error),
    )
    yield (
        "EmpiricalFisher",
        lambda m: natgrad.EmpiricalFisher(
            Categorical(logits=m(X)).log_prob(LABELS),  # type: ignore[no-untyped-call]
            parameters(m),
        ),
    )
    yield (
        "Hessian",
        lambda m: natgrad.Hessian(nn.functional.cross_entropy(m(X), LABELS), parameters(m)),
    )
    yield (
        "Kronecker",
        lambda m: natgrad.Kronecker(
            m, X, forward=lambda x: Categorical(logits=m(x)), parameters=parameters(m)
        ),
    )
    yield (
        "Kronecker, corrected",
        lambda m: natgrad.Kronecker(
            m, X, forward=lambda x: Categorical(logits=m(x)), parameters=parameters(m),
            corrected=True,
        ),
    )  # fmt: skip
    yield "Gram", lambda m: natgrad.Gram(m(X).sum(dim=1), parameters(m))


def register_operators() -> None:
    for name, make in operators():

        @subject(f"operator: {name}")
        def prepare(make: Callable[[nn.Module], Any] = make) -> Callable[[], Numbers]:
            model = network()

            def act() -> Numbers:
                operator = make(model)
                v = random(operator.shape[0], seed=3)
                found = [operator @ v for _ in range(STEPS)]
                if hasattr(operator, "solve"):
                    found.append(operator.solve(v, damping=0.1))
                return [*found, getattr(operator, "products", 0)]

            return act


def matrix(n: int = 60, *, definite: bool = True, dtype: torch.dtype = torch.float64) -> Tensor:
    A = random(n, n, seed=4, dtype=dtype)
    return A @ A.mT / n + 0.01 * torch.eye(n, dtype=dtype) if definite else A + A.mT


def solutions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for dtype in (torch.float32, torch.float64):
        A, B = matrix(dtype=dtype), matrix(definite=False, dtype=dtype)
        b, J = random(60, seed=5, dtype=dtype), random(80, 60, seed=6, dtype=dtype)
        of = str(dtype).removeprefix("torch.")
        yield f"cg {of}", lambda A=A, b=b: natgrad.cg(A, b)
        yield f"cg damped {of}", lambda A=A, b=b: natgrad.cg(A, b, damping=0.1)
        yield (
            f"cg preconditioned {of}",
            lambda A=A, b=b: natgrad.cg(
                A, b, x0=0.1 * b, preconditioner=natgrad.preconditioners.jacobi(A.diagonal())
            ),
        )
        yield f"cg of NumPy {of}", lambda A=A, b=b: natgrad.cg(A.numpy(), b.numpy())
        yield f"minres {of}", lambda B=B, b=b: natgrad.minres(B, b)
        yield f"steihaug {of}", lambda B=B, b=b: natgrad.steihaug(B, b, 0.5)
        yield f"lanczos {of}", lambda B=B, b=b: natgrad.lanczos(B, b).solve(radius=0.5)
        yield f"cholesky {of}", lambda A=A, b=b: natgrad.cholesky(A, b, damping=0.1)
        yield (
            f"least_squares {of}",
            lambda J=J, b=b: natgrad.least_squares(J).solve(J @ b, radius=0.5),
        )


def register_solvers() -> None:
    for name, solve in solutions():

        @subject(f"solver: {name}")
        def prepare(solve: Callable[[], Any] = solve) -> Callable[[], Numbers]:
            def act() -> Numbers:
                s = solve()
                x, Ax = torch.as_tensor(s.x), torch.as_tensor(s.Ax)
                return [x, Ax, s.status.name, s.iterations, s.products, s.residual_norm]

            return act


def optimizers() -> Iterator[tuple[str, Callable[[nn.Module], Any], bool]]:
    """Name, constructor, whether a closure is given."""

    def fisher(model: nn.Module) -> Callable[[], Any]:
        return lambda: natgrad.Fisher(Categorical(logits=model(X)), list(model.parameters()))

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, *others = model.parameters()
        return [{"params": [first], "lr": 0.5}, {"params": others}]

    categorical: dict[str, Any] = {"likelihood": "categorical"}
    for closure in (False, True):
        yield "NaturalGradient", lambda m: optim.NaturalGradient(m, **categorical), closure
        yield (
            "NaturalGradient with groups",
            lambda m: optim.NaturalGradient(groups(m), model=m, **categorical),
            closure,
        )
        yield (
            "NaturalGradient of an operator",
            lambda m: optim.NaturalGradient(list(m.parameters()), curvature=fisher(m)),
            closure,
        )
        yield (
            "HessianFree",
            lambda m: optim.HessianFree(m, loss="cross_entropy"),
            closure,
        )
        yield (
            "AdaptiveKFAC",
            lambda m: optim.AdaptiveKFAC(m, damping=0.1, refresh_every=2, **categorical),
            closure,
        )
    yield "KFAC", lambda m: optim.KFAC(m, lr=0.5, refresh_every=2, **categorical), False
    yield (
        "KFAC, corrected",
        lambda m: optim.KFAC(
            m, lr=0.5, corrected=True, samples=None, weight_decay=0.01, **categorical
        ),
        False,
    )
    yield "TrustRegionNewton", lambda m: optim.TrustRegionNewton(list(m.parameters())), True
    yield "NonlinearCG", lambda m: optim.NonlinearCG(list(m.parameters())), True


def register_optimizers() -> None:
    for name, make, with_closure in optimizers():
        for convolve in (False, True):
            if convolve and "operator" in name:
                continue
            kind = ", convolutional" if convolve else ""
            kind += ", closure" if with_closure else ""

            @subject(f"optimizer: {name}{kind}")
            def prepare(
                make: Callable[[nn.Module], Any] = make,
                with_closure: bool = with_closure,
                convolve: bool = convolve,
            ) -> Callable[[], Numbers]:
                def act() -> Numbers:
                    model = network(convolve=convolve)
                    optimizer = make(model)
                    inputs = IMAGES if convolve else X

                    def closure() -> Tensor:
                        optimizer.zero_grad()
                        loss = nn.functional.cross_entropy(model(inputs), LABELS)
                        loss.backward()  # type: ignore[no-untyped-call]
                        return loss

                    return _stepped(optimizer, model, closure, with_closure=with_closure)

                return act


def _stepped(
    optimizer: Any, model: nn.Module, closure: Callable[[], Tensor], *, with_closure: bool
) -> Numbers:
    found: Numbers = []
    for _ in range(STEPS):
        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        report = optimizer.last_step
        found += [
            flatten(model.parameters()), report.status.name, report.products, report.iterations,
            report.evaluations, report.kl, report.predicted_kl, report.damping,
        ]  # fmt: skip
    return found


@subject("optimizer: LevenbergMarquardt of a model")
def of_a_model() -> Callable[[], Numbers]:
    def act() -> Numbers:
        model = network()
        optimizer = optim.LevenbergMarquardt(model)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X), TARGETS)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return _stepped(optimizer, model, closure, with_closure=True)

    return act


def register_least_squares() -> None:
    settings: dict[str, dict[str, Any]] = {
        "dense": {"method": "dense", "scaled": True},
        "sample_space": {"method": "sample_space", "damping": 0.01, "momentum": 0.5},
        "cg": {"method": "cg"},
        "accelerated": {"acceleration": 0.75, "method": "dense"},
    }
    for name, given in settings.items():

        @subject(f"optimizer: LevenbergMarquardt, {name}")
        def prepare(given: dict[str, Any] = given) -> Callable[[], Numbers]:
            def act() -> Numbers:
                model = network()
                optimizer = optim.LevenbergMarquardt(list(model.parameters()), **given)

                def residuals() -> Tensor:
                    differences: Tensor = (model(X) - TARGETS).flatten()
                    return differences

                return _stepped(optimizer, model, residuals, with_closure=True)

            return act


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = network(outputs=3), nn.Parameter(torch.zeros(3))

    def forward(self, observations: Tensor) -> Independent[Normal]:
        return Independent(Normal(self.mean(observations), self.log_std.exp()), 1)


class Discrete(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = network()

    def forward(self, observations: Tensor) -> Categorical:
        return Categorical(logits=self.logits(observations))


def on_policy() -> Iterator[tuple[str, type[Any], dict[str, Any]]]:
    for name in ("TRPO", "NPG", "PPO", "A2C", "ACKTR"):
        yield name, getattr(rl_plugins, name), {}
    yield "TRPO on every third state", rl_plugins.TRPO, {"fisher_stride": 3, "fisher_chunk_size": 9}
    yield "PPO with a penalty", rl_plugins.PPO, {"objective": "penalty", "max_kl": 0.005}


def register_on_policy() -> None:
    for name, make, settings in on_policy():
        for family, policy_of in (("discrete", Discrete), ("gaussian", Gaussian)):

            @subject(f"step: {name}, {family}")
            def prepare(
                make: type[Any] = make,
                settings: dict[str, Any] = settings,
                policy_of: type[nn.Module] = policy_of,
            ) -> Callable[[], Numbers]:
                def act() -> Numbers:
                    policy = policy_of()
                    algorithm = make(policy, **settings)
                    actions = LABELS if policy_of is Discrete else random(64, 3, seed=7)
                    found: Numbers = []
                    for step in range(STEPS):
                        report = algorithm.step(X, actions, random(64, seed=8 + step))
                        found += [flatten(policy.parameters()), report.status.name, report.kl]
                    return found

                return act


class Critic(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.value = network(inputs=15, outputs=1, seed=seed)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = self.value(torch.cat([observations, actions], dim=1)).squeeze(1)
        return values


def register_off_policy() -> None:
    for name, critics in (("DDPG", 1), ("TD3", 2)):
        for actor in ("gradient", "natural"):

            @subject(f"step: {name}, {actor} actor")
            def prepare(
                name: str = name, critics: int = critics, actor: str = actor
            ) -> Callable[[], Numbers]:
                def act() -> Numbers:
                    policy = nn.Sequential(network(outputs=3), nn.Tanh())
                    made = [Critic(seed + 1) for seed in range(critics)]
                    algorithm = getattr(rl_plugins, name)(policy, *made, actor=actor)
                    found: Numbers = []
                    for step in range(STEPS):
                        report = algorithm.step(
                            X, random(64, 3, seed=7).tanh(), random(64, seed=step), X.flip(0),
                            LABELS == 0,
                        )  # fmt: skip
                        weights = [p for part in (policy, *made) for p in part.parameters()]
                        found += [flatten(weights), report.status.name, report.critic_loss]
                    return found

                return act


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "trpo": ("CartPole-v1", {}),
    "npg": ("Pendulum-v1", {"critic": "adam", "normalise_rewards": True}),
    "ppo": ("CartPole-v1", {"memory_size": 8}),
    "a2c": ("CartPole-v1", {}),
    "acktr": ("Pendulum-v1", {}),
    "ddpg": ("Pendulum-v1", {"actor": "natural", "learning_starts": 200, "batch_size": 32}),
    "td3": ("Pendulum-v1", {"learning_starts": 200, "batch_size": 32}),
}


def settings_of_run(name: str, total_steps: int = 2048) -> dict[str, Any]:
    """A short run with checkpoints on its way."""
    small: dict[str, Any] = {
        "hidden_sizes": (16,), "environments": 2, "evaluations": 1, "checkpoints": 2,
    }  # fmt: skip
    if name in ("trpo", "npg", "ppo", "a2c", "acktr"):
        small["rollout_length"] = 128
    return {"total_steps": total_steps, "seed": 3, **small, **RUNS[name][1]}


def options_of(config: dict[str, Any]) -> list[str]:
    """The command line that asks for all that a run directory's config.json holds."""
    arguments = ["train", config["algorithm"], config["task"]]
    for name, value in {**config["run"], **config["config"]}.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(option if value else option.replace("--", "--no-", 1))
        else:
            values = value if isinstance(value, list) else [value]
            arguments += [option, *map(str, values)]
    return arguments


def table(run_dir: Path) -> list[str]:
    """progress.csv without what it says of time."""
    with (run_dir / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [str({k: v for k, v in row.items() if "second" not in k}) for row in rows]


def register_runs() -> None:
    for name, (task, _) in RUNS.items():

        @subject(f"run: {name}")
        def prepare(name: str = name, task: str = task) -> Callable[[], Numbers]:
            def act() -> Numbers:
                with tempfile.TemporaryDirectory() as folder:
                    run_dir = Path(folder) / "run"
                    rl_plugins.train(name, task, run_dir=run_dir, **settings_of_run(name))
                    return [*table(run_dir), str(rl_plugins.evaluate_run(run_dir, episodes=2))]

            return act


def register_old_runs(runs: Path) -> None:
    """Run directories of another revision: they resume and evaluate, and the command line takes
    what they were made with."""
    for run_dir in sorted(runs.iterdir()):

        @subject(f"old run: {run_dir.name}")
        def prepare(run_dir: Path = run_dir) -> Callable[[], Numbers]:
            def act() -> Numbers:
                from rl_plugins.cli import main
                from rl_plugins.runs import resume

                evaluated = rl_plugins.evaluate_run(run_dir, episodes=2)
                config = json.loads((run_dir / "config.json").read_text())
                with tempfile.TemporaryDirectory() as folder:
                    copy = Path(folder) / "copy"
                    shutil.copytree(run_dir, copy)
                    (copy / "outcome.json").unlink()
                    longer = {**config["run"], "total_steps": 2 * config["run"]["total_steps"]}
                    (copy / "config.json").write_text(json.dumps({**config, "run": longer}))
                    resume(copy)
                    fresh = Path(folder) / "fresh"
                    arguments = [*options_of(config), "--run-dir", str(fresh)]
                    with contextlib.redirect_stdout(io.StringIO()):
                        status = main(arguments)
                    made = json.loads((fresh / "config.json").read_text())
                    asked = [str(made[part]) for part in ("run", "config")]
                    return [*table(copy), str(evaluated), status, *asked, *table(fresh)]

            return act


for register in (
    register_operators, register_solvers, register_optimizers, register_least_squares,
    register_on_policy, register_off_policy, register_runs,
):  # fmt: skip
    register()


def main(
    out: Path,
    repeats: int = 1,
    only: str = "",
    make_runs: Path | None = None,
    old_runs: Path | None = None,
) -> None:
    """Write {name: (numbers, shortest seconds)}.

    Args:
        out: The file.
        repeats: Most times that each subject runs, within a second or so; the first is not timed.
        only: Part of the names of those to run; empty: all.
        make_runs: A folder to leave a run directory of every algorithm in.
        old_runs: The folder that another revision left them in.
    """
    torch.set_num_threads(1)
    if make_runs is not None:
        for name, (task, _) in RUNS.items():
            rl_plugins.train(name, task, run_dir=make_runs / name, **settings_of_run(name))
    if old_runs is not None:
        register_old_runs(old_runs)
    record = {}
    for name, prepare in SUBJECTS.items():
        if only not in name:
            continue
        torch.manual_seed(0)
        act = prepare()
        try:
            numbers = act()
        except Exception as error:  # another revision may refuse what this one takes
            record[name] = ([f"{type(error).__name__}: {error}"], float("nan"))
            continue
        seconds: list[float] = []
        while len(seconds) < repeats - 1 and (len(seconds) < 2 or sum(seconds) < BUDGET):
            began = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - began)
        record[name] = (numbers, min(seconds, default=float("nan")))
    torch.save(record, out)


if __name__ == "__main__":
    tyro.cli(main)
