"""The suite as other machines would run it: one axis at a time, each a row with a name.

.venv/bin/python bench/machines.py                      # every row
.venv/bin/python bench/machines.py cpu-avx2 oldest      # these
.venv/bin/python bench/machines.py mkl-avx2 --tests tests/natgrad

Whole rows are kept in bench/results/machines.json, each in place of its earlier run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import reversed_sums
import torch

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "results" / "machines.json"
CORES = 2  # what the suite is sized for; `make test` uses as many
SEED = "20240229"  # of the order, printed by pytest in its header
LIMIT = 3600  # seconds a row: a loop that another version does not end must not take the others
PACKAGES = ("torch", "numpy", "scipy", "gymnasium")


@dataclass(frozen=True)
class Row:
    changes: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment_folder: str = ".venv"
    threads: int = 1


def mkl(instructions: str, branch: str) -> Row:
    # The first is heeded by MKL on Intel's processors alone, the second everywhere.
    return Row(
        f"MKL's kernels: {branch}",
        {"MKL_ENABLE_INSTRUCTIONS": instructions, "MKL_CBWR": branch},
    )


ROWS = {
    "plain": Row("nothing: this machine as it is"),
    "cpu-default": Row(
        "torch's own kernels: no vector instructions", {"ATEN_CPU_CAPABILITY": "default"}
    ),
    "cpu-avx2": Row("torch's own kernels: AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}),
    "mkl-sse42": mkl("SSE4_2", "COMPATIBLE"),
    "mkl-avx2": mkl("AVX2", "AVX2"),
    "mkl-avx512": mkl("AVX512", "AVX512"),
    "onednn-sse41": Row("oneDNN's kernels: SSE4.1", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "openblas-nehalem": Row(
        "NumPy's and SciPy's OpenBLAS: SSE4.2", {"OPENBLAS_CORETYPE": "Nehalem"}
    ),
    "threads-1": Row("one thread, of NumPy and of child processes too"),
    "threads-2": Row("two threads in every test", threads=2),
    "reversed-sums": Row(
        "torch's products, each sum from its other end", {"NATGRAD_TEST_SUMS": "reversed"}
    ),
    "random-order": Row(
        f"the order of the tests, by seed {SEED}",
        arguments=("--random-order", f"--random-order-seed={SEED}"),
    ),
    "oldest": Row(
        "the oldest versions that pyproject.toml allows", environment_folder=".venv-oldest"
    ),
}


def settings(name: str) -> dict[str, str]:
    """What a row's processes see: no limits of the caller's, the same examples every time."""
    row = ROWS[name]
    inherited = {key: value for key, value in os.environ.items() if "_NUM_THREADS" not in key}
    environment = {**inherited, "HYPOTHESIS_PROFILE": "ci", **row.environment}
    if name.startswith("threads-"):
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment |= dict.fromkeys((*counts, "NATGRAD_TEST_THREADS"), str(row.threads))
    return environment


def arithmetic() -> dict[str, Any]:
    """Of this process: what torch says of itself, and the last bits of some of its answers."""
    torch.set_num_threads(int(os.environ.get("NATGRAD_TEST_THREADS", "1")))
    if os.environ.get("NATGRAD_TEST_SUMS") == "reversed":
        reversed_sums.install()
    build, parallel = torch.__config__.show(), torch.__config__.parallel_info()
    generator = torch.Generator().manual_seed(0)
    bits = {}
    for dtype in (torch.float32, torch.float64):
        # In float64 first: where float32's draws end in other bits, not everything is to follow.
        A = torch.randn(301, 203, generator=generator, dtype=torch.float64).to(dtype)
        K = A.mT @ A / 301 + torch.eye(203, dtype=dtype)
        images, kernel = A[:64, :64].expand(2, 3, 64, 64), A[:9, :9].expand(4, 3, 9, 9)
        answers = {
            "draws": torch.randn(100, generator=generator, dtype=dtype),
            "product": A.mT @ A,
            "sum": A.sum(),
            "exp": A.exp(),
            "softmax": A.softmax(1),
            "cholesky": torch.linalg.cholesky(K),
            "eigh": torch.linalg.eigvalsh(K),
            "svd": torch.linalg.svdvals(A),
            "convolution": torch.nn.functional.conv2d(images, kernel),
            "numpy": torch.from_numpy(A.numpy().T @ A.numpy()),
        }
        for operation, answer in answers.items():
            digest = hashlib.sha256(answer.contiguous().numpy().tobytes()).hexdigest()
            bits[f"{operation} {str(dtype).removeprefix('torch.')}"] = digest[:12]

    def told(pattern: str, text: str) -> str:
        return found[1].strip() if (found := re.search(pattern, text)) else ""

    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "blas": told(r"BLAS_INFO=(\w+)", build),
        "mkl": told(r"Math Kernel Library (Version \S+)", build),
        "onednn": told(r"MKL-DNN (v\S+)", build),
        "threads": told(r"get_num_threads\(\) : (\d+)", parallel),
        "mkl threads": told(r"mkl_get_max_threads\(\) : (\d+)", parallel),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "bits": bits,
    }


def asked(name: str) -> dict[str, Any]:
    """``arithmetic`` of a row's processes."""
    python = ROOT / ROWS[name].environment_folder / "bin" / "python"
    answer = subprocess.run(
        [python, __file__, "--arithmetic"],
        cwd=ROOT, env=settings(name), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode:
        return {"error": answer.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def counted(report: Path) -> dict[str, object]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    bad = [
        f"{case.get('classname', '')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - len(set(bad)) - skipped
    return {"passed": passed, "failed": len(set(bad)), "skipped": skipped, "failures": bad}


def run(name: str, tests: list[str]) -> dict[str, Any]:
    """One row's result; with "error", it could not be had."""
    row = ROWS[name]
    if row.environment_folder != ".venv":
        made = subprocess.run(["make", f"{row.environment_folder}/.dev"], cwd=ROOT, check=False)
        if made.returncode:
            return {"error": f"{row.environment_folder} could not be made"}
    python = ROOT / row.environment_folder / "bin" / "python"
    found, plain = asked(name), asked("plain")
    for answer in (found, plain):
        if "error" in answer:
            return answer
    bits = found.pop("bits")
    found["other bits"] = [each for each, digest in plain["bits"].items() if bits[each] != digest]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        arguments = [
            f"--numprocesses={CORES // row.threads}", "--dist=loadfile", f"--junit-xml={report}",
            *row.arguments, *tests,
        ]  # fmt: skip
        start = perf_counter()
        try:
            finished = subprocess.run(
                [python, "-m", "pytest", *arguments],
                cwd=ROOT, env=settings(name), check=False, timeout=LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"no end within {LIMIT} s"}
        seconds = round(perf_counter() - start)
        if not report.exists():
            return {"error": f"pytest ended with {finished.returncode} and no report"}
        result = {**counted(report), "exit status": finished.returncode, "seconds": seconds}
    return result | found


def kept() -> dict[str, dict[str, object]]:
    return json.loads(OUT.read_text(encoding="utf-8"))["rows"] if OUT.exists() else {}


def keep(name: str, result: dict[str, object]) -> None:
    rows = {**kept(), name: {"changes": ROWS[name].changes, **result}}
    record = {
        "command": "make test-machines",
        "rows": {name: rows[name] for name in ROWS if name in rows},
    }
    OUT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--tests", nargs="*", default=[], help="only these; the data stay")
    parser.add_argument("--arithmetic", action="store_true", help=argparse.SUPPRESS)
    choice = parser.parse_args()
    if choice.arithmetic:
        print(json.dumps(arithmetic()))
        return
    if unknown := set(choice.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    lines, good = [], True
    for name in choice.rows or ROWS:
        print(f"\n{name}: {ROWS[name].changes}", flush=True)
        result = run(name, choice.tests)
        if not choice.tests:
            keep(name, result)
        good &= result.get("exit status") == 0
        lines.append(
            f"{name}: {result['error']}" if "error" in result else
            f"{name}: {'good' if result['exit status'] == 0 else 'BAD'} in {result['seconds']} s"
        )  # fmt: skip
    print("\n" + "\n".join(lines))
    sys.exit(not good)


if __name__ == "__main__":
    main()
