"""Keeps of pytest-benchmark's record what a reader compares: no host names, no raw rounds."""

import os
import platform
from importlib.metadata import version
from typing import Any

# Before NumPy loads: SciPy's solvers get the one thread that torch's get.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


def pytest_benchmark_update_json(
    config: object, benchmarks: object, output_json: dict[str, Any]
) -> None:
    kept = ("min", "median", "iqr", "rounds")
    output_json["benchmarks"] = [
        {
            "group": entry["group"],
            "name": entry["name"],
            **{name: entry["stats"][name] for name in kept},
        }
        for entry in output_json["benchmarks"]
    ]
    output_json["machine_info"] = {"processor": platform.machine(), "threads": 1}
    output_json["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
    }
    for name in ("commit_info", "datetime", "version"):
        output_json.pop(name, None)
