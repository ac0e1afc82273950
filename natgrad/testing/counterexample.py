"""A solver's counterexample as a few lines of code that run without natgrad."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from natgrad.testing.cases.system import System
from natgrad.testing.check import Verdict
from natgrad.testing.optimizer_counterexample import optimizer_script
from natgrad.testing.subjects.minimiser import Minimiser
from natgrad.testing.subjects.optimizer import Optimizer
from natgrad.testing.subjects.solver import Solver

Arguments = Mapping[str, Any]
PRODUCT = "product = A.matmul\n"
RESIDUAL = (
    "r = b.double() - A.double() @ x.double()\n"
    'print("relative residual", float(r.norm() / b.double().norm()), "asked", rtol)\n'
)
COUNTED = (
    "products = 0\ndef product(v):\n    global products\n    products += 1\n    return A @ v\n"
)


def script(verdict: Verdict, subject: Any) -> str | None:
    """The counterexample of a failed check as a script.

    Parameters
    ----------
    verdict
        The verdict of the failed check.
    subject
        The subject that failed.

    Returns
    -------
    str or None
        The script for a solver, minimiser or optimizer with a ``script``; None where the subject
        has none, or the check is of another kind.
    """
    identifier, arguments = verdict.check.identifier, verdict.arguments
    if isinstance(subject, Optimizer):
        return optimizer_script(identifier, arguments, subject)
    if isinstance(subject, Minimiser) and subject.script and "objective" in arguments:
        return subject.code(arguments["objective"])
    scene = SCENES.get(identifier)
    if scene is None or not isinstance(subject, Solver) or subject.script is None:
        return None
    return "import torch\n" + scene(arguments, subject.script)


Script = Callable[[frozenset[str]], str]
Scene = Callable[[Arguments, Script], str]


def _system(arguments: Arguments) -> str:
    system: System = arguments["system"]
    return system.code()


def _call(call: Script, *given: str) -> str:
    return call(frozenset(given))


def _solved(rtol: Callable[[Arguments], float], *given: str) -> Scene:
    def scene(arguments: Arguments, call: Script) -> str:
        system: System = arguments["system"]
        if "A_digits" in arguments:
            system = system.scaled(10.0 ** arguments["A_digits"], 10.0 ** arguments["b_digits"])
        setting = f"rtol = {rtol(arguments):g}\n" + _limit(arguments, given)
        return system.code() + PRODUCT + setting + _call(call, *given) + RESIDUAL

    return scene


def _limit(arguments: Arguments, given: tuple[str, ...]) -> str:
    return f"limit = {arguments['limit']}\n" if "max_iterations" in given else ""


def _scaled(arguments: Arguments, call: Script) -> str:
    A_power, b_power = arguments["A_power"], arguments["b_power"]
    return (
        _system(arguments) + PRODUCT + "rtol = 1e-8\n" + _call(call) + "first = x\n"
        f"A, b = A * 4.0**{A_power}, b * 4.0**{b_power}\n"
        + PRODUCT
        + _call(call)
        + f"x = x / 4.0**{b_power - A_power}\n"
        'print("differ by", float((x - first).norm() / first.norm()), "of their norm")\n'
    )


def _counted(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + COUNTED
        + "rtol = 1e-8\n"
        + _call(call)
        + 'print(products, "products, distinct eigenvalues:", len(set(values.tolist())))\n'
    )


def _zero(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + "b = torch.zeros_like(b)\n"
        + COUNTED
        + "rtol = 1e-8\n"
        + _call(call)
        + 'print(products, "products for b = 0, x =", x)\n'
    )


def _nan(arguments: Arguments, call: Script) -> str:
    broken = COUNTED.replace(
        "return A @ v", f"return A @ v if products < {arguments['k']} else v * torch.nan"
    )
    return (
        _system(arguments)
        + broken
        + "rtol = 1e-12\n"
        + _call(call)
        + 'print(products, "products, x =", x)\n'
    )


def _nan_in_b(arguments: Arguments, call: Script) -> str:
    bad = f"b[0] = float('{arguments['bad']}')\n"
    return (
        _system(arguments)
        + bad
        + COUNTED
        + "rtol = 1e-8\n"
        + _call(call)
        + 'print(products, "products, x =", x)\n'
    )


def _started(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + COUNTED
        + "rtol = 1e-6\nx0 = torch.linalg.solve(A, b)\n"
        + _call(call, "x0")
        + 'print(products, "products from the solution")\n'
    )


def _preconditioned(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + COUNTED
        + "rtol = 1e-6\nP = torch.linalg.inv(A)\n"
        + _call(call, "preconditioner")
        + 'print(products, "products with the inverse")\n'
    )


def _one_iteration(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + PRODUCT
        + "rtol, limit = 0.0, 1\n"
        + _call(call, "max_iterations")
        + "outside = x - b * (b @ x) / (b @ b)\n"
        'print("after one iteration this share of x is no multiple of b:",\n'
        "      float(outside.norm() / x.norm()))\n"
    )


def _trace(arguments: Arguments, call: Script) -> str:
    return (
        _system(arguments)
        + PRODUCT
        + "rtol = 1e-8\ntorch.manual_seed(0)\ndrawn = torch.get_rng_state()\n"
        + _call(call)
        + 'print("global random state kept:", torch.equal(torch.get_rng_state(), drawn))\n'
    )


def _rescaled(arguments: Arguments, call: Script) -> str:
    system, limit = arguments["system"], min(arguments["j"], len(arguments["system"]))
    entries = f"torch.rand({len(system)}, generator=draw, dtype=torch.float64)"
    given = ("preconditioner", "max_iterations")
    return (
        _system(arguments) + f"draw = torch.Generator().manual_seed({arguments['seed']})\n"
        f"P = (3 ** (2 * {entries} - 1)).diag()\n"
        + PRODUCT
        + f"rtol, limit = 1e-14, {limit}\n"
        + _call(call, *given)
        + f"first, P = x, P * 4.0**{arguments['power']}\n"
        + _call(call, *given)
        + 'print("differ by", float((x - first).norm() / first.norm()), "of their norm")\n'
    )


def _from_afar(arguments: Arguments, call: Script) -> str:
    system = arguments["system"]
    draw = f"draw = torch.Generator().manual_seed({2 * system.seed + 1})\n"
    far = f"torch.randn(2, {len(system)}, generator=draw, dtype=torch.float64)[1]"
    return (
        _system(arguments)
        + draw
        + f"x0 = torch.linalg.solve(A, b) + {arguments['distance']} * {far}\n"
        + PRODUCT
        + "rtol = 1e-8\n"
        + _call(call, "x0")
        + RESIDUAL
    )


def _columns(arguments: Arguments, call: Script) -> str:
    system, columns = arguments["system"], arguments["k"] + 1
    draw = f"draw = torch.Generator().manual_seed({2 * system.seed + 1})\n"
    return (
        _system(arguments)
        + draw
        + f"b = torch.randn({columns}, {len(system)}, generator=draw, dtype=torch.float64).mT\n"
        f"b[:, -1] *= {arguments['scale']}\n"
        + PRODUCT
        + "rtol = 1e-8\n"
        + _call(call)
        + 'print("relative residuals", (b - A @ x).norm(dim=0) / b.norm(dim=0))\n'
    )


def _asked(arguments: Arguments) -> float:
    digits: int = arguments["digits"]
    return 10.0**-digits


def _default(arguments: Arguments) -> float:
    return 1e-8


SCENES: dict[str, Scene] = {
    "S1": _counted,
    "S3": _one_iteration,
    "S4": _solved(_asked),
    "S4b": _solved(_default),
    "S4c": _solved(_default),
    "S5": _scaled,
    "S5b": _solved(_default),
    "S7": _preconditioned,
    "S7b": _rescaled,
    "S8": _started,
    "S8b": _from_afar,
    "S9": _zero,
    "S10": _nan,
    "S10b": _nan_in_b,
    "S12": _solved(_default),
    "S13b": _solved(_default),
    "S15": _solved(lambda arguments: 1e-10, "max_iterations"),
    "S16": _columns,
    "S19": _trace,
}
