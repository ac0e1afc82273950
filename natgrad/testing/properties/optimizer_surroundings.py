"""Optimizers under mixed precision and in several processes. P9, P19."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from natgrad.testing.cases.training import Training
from natgrad.testing.check import Kind, NotApplicable, check
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import far

CLEAR = (RuntimeError, TypeError, ValueError, NotImplementedError)
SECONDS = 60.0  # until processes that wait for each other count as hung


@check(
    "P9",
    Kind.OPTIMIZER,
    "a GradScaler's power of two changes no step, and a gradient of infinity is skipped; or an "
    "error says why not",
    tolerance="none: powers of two only shift exponents",
    needs=["deterministic"],
    training=lambda subject: trainings(
        subject, forms=("plain",), networks=("mlp",), dtype=torch.float32
    ),
)
def gradients_may_be_scaled(subject: Optimizer, training: Training) -> None:
    run, plain = subject.begin(training), subject.begin(training)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(factor: float) -> None:
        run.optimizer.zero_grad()
        scaler.scale(training.loss(run.model) * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(run.optimizer)
        scaler.update()

    before = run.theta
    try:
        step(1.0)
    except CLEAR as error:
        _assert_clear(error)
        assert torch.equal(run.theta, before), f"before its error, {far(run.theta, before)}"
        return
    plain.step()
    assert torch.equal(run.theta, plain.theta), far(run.theta, plain.theta)
    before = run.theta
    step(float("inf"))
    assert torch.equal(run.theta, before), f"at infinity, {far(run.theta, before)}"


@check(
    "P9b",
    Kind.OPTIMIZER,
    "a forward pass under autocast leaves parameters of float32, finite, and lowers the loss of a "
    "first step; or an error says why not",
    tolerance="a first step downhill to the accuracy of bfloat16: gᵀd <= 0.05 ‖g‖ ‖d‖",
    training=lambda subject: trainings(subject, networks=("mlp",), dtype=torch.float32),
)
def forward_passes_may_be_autocast(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    run.undecayed()
    before, g = run.theta, run.gradient()

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if run.form == "residuals":
                return training.residuals(run.model).float()
            loss = training.loss(run.model)
        if run.form != "bare closure":
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    try:
        run.step_by(closure)
    except CLEAR as error:
        _assert_clear(error)
        assert torch.equal(run.theta, before), f"before its error, {far(run.theta, before)}"
        return
    assert run.theta.dtype == torch.float32, f"parameters became {run.theta.dtype}"
    assert bool(torch.isfinite(run.theta).all()), "parameters are not finite"
    d = run.theta - before
    slope, size = float(g @ d), float(g.norm() * d.norm())
    assert slope <= 0.05 * size, f"gᵀd = {slope:.3g}, ‖g‖ ‖d‖ = {size:.3g}"


@check(
    "P19",
    Kind.OPTIMIZER,
    "two processes with half of the batch each, under DistributedDataParallel, take the steps of "
    "one with the whole; or an error says that they cannot",
    tolerance="1e-6 of the step: the sum over the batch is another",
    found=["torch.optim.LBFGS, strong_wolfe: each process searches along its own half's loss"],
    needs=["deterministic"],
    cost=25,
    training=lambda subject: trainings(subject, networks=("mlp",)),
)
def two_processes_are_one(subject: Optimizer, training: Training) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        raise NotApplicable("this platform cannot fork")
    training = training.of_even_length()
    run = subject.begin(training)
    start = run.theta
    run.path(2)
    allowed = 1e-6 * float((run.theta - start).norm())
    for rank, answer in enumerate(_in_two_processes(subject, training)):
        if isinstance(answer, str):
            assert answer.startswith("RuntimeError"), f"rank {rank} ends with {answer}"
            assert len(answer) > 40, f"rank {rank} does not say why: {answer}"
            continue
        error = float((torch.tensor(answer, dtype=start.dtype) - run.theta).norm())
        assert error <= allowed, f"rank {rank} is {error:.2g} away, allowed {allowed:.2g}"


def _in_two_processes(subject: Optimizer, training: Training) -> list[Any]:
    """The results of :func:`_trained` on both ranks, or the errors in words."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        pipes, processes = [], []
        for rank in range(2):
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_on_rank, args=(rank, Path(folder) / "store", subject, training, there)
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            answers = []
            for rank, pipe in enumerate(pipes):
                assert pipe.poll(SECONDS), f"rank {rank} does not answer within {SECONDS:.0f} s"
                answers.append(pipe.recv())
            return answers
        finally:
            for process in processes:
                process.kill()
                process.join()


def _on_rank(
    rank: int, store: Path, subject: Optimizer, training: Training, answers: Connection
) -> None:
    """Send the parameters after two steps, or the error in words."""
    # A fork has none of OpenMP's threads: a loop shared among them would wait forever.
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=2
        )
        answers.send(_trained(rank, subject, training).tolist())
    except Exception as error:
        answers.send(f"{type(error).__name__}: {error}")
    finally:
        answers.close()


def _trained(rank: int, subject: Optimizer, training: Training) -> Tensor:
    half = training.half(rank)
    run = subject.begin(half)
    parallel = DistributedDataParallel(run.model)

    def closure() -> Tensor:
        return run.closure_of(lambda: half.loss(parallel), lambda: half.residuals(run.model))

    for _ in range(2):
        run.step_by(closure)
    return run.theta


def _assert_clear(error: Exception) -> None:
    """Assert that an error explains itself, as one that the optimizer raises on purpose does."""
    assert len(str(error)) > 20, f"{type(error).__name__} says only {str(error)!r}"
