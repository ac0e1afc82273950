"""Checkpoints: everything that a run goes on from, with a checksum, and the one before it kept.

checkpoint.pt          the last one that was planned
checkpoint-before.pt   the one before it, used where the last is damaged
interruption.pt        where a signal ended the run: see :func:`rl_plugins.runs.resume`
best.pt                that of the best evaluation

All load with ``weights_only=True``: a file from a stranger runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_plugins.errors import DamageWarning, ExperienceError, UsageError, one_line
from rl_plugins.runs.files import keep_as, open_regular, replace_whole

LAST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
INTERRUPTION, BEST = "interruption.pt", "best.pt"
# What a checkpoint holds, by name; besides them its checksum.
PARTS: dict[str, type[Any] | tuple[type[Any], ...]] = {
    "agent": dict,
    "generator": Tensor,
    "steps": int,
    "updates": int,
    "seconds": (int, float),
    "evaluations": int,
    "best": (int, float),
    "spaces": dict,
    "configs": list,
}
MOST_STEPS = 2**62


def save_checkpoint(path: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write a checkpoint. ``LAST`` becomes ``BEFORE`` where it is replaced.

    Parameters
    ----------
    path, name
        The run's directory, and the file.
    state
        A value for each of ``PARTS``.

    Raises
    ------
    ExperienceError
        Where a tensor holds a NaN or an infinity: a good checkpoint is never replaced by one that
        cannot be used.
    """
    if broken := _not_finite(state["agent"]):
        raise ExperienceError(
            f"after {state['steps']:,} steps {broken} holds a NaN or an infinity: what the task "
            "returns may be too large for float32; the checkpoint before stays as it was"
        )
    whole = {**state, "checksum": _checksum(state)}
    if name == LAST and (path / LAST).is_file():
        keep_as(path / LAST, path / BEFORE)
    replace_whole(path / name, lambda file: torch.save(whole, file))


def load_checkpoint(path: Path, name: str = LAST) -> dict[str, Any]:
    """A checkpoint of a run, as :func:`save_checkpoint` took it.

    Where the last one is damaged the one before it is taken, with a :class:`DamageWarning`.

    Parameters
    ----------
    path, name
        The run's directory, and the file.

    Raises
    ------
    UsageError
        Where there is none, or none that can be trusted.
    """
    try:
        return _load(path / name)
    except UsageError as error:
        if name != LAST or not (path / BEFORE).is_file():
            raise
        try:
            before = _load(path / BEFORE)
        except UsageError:
            raise error from None
        warnings.warn(
            f"{error}; the one before it is taken, of step {before['steps']:,}",
            DamageWarning,
            stacklevel=2,
        )
        return before


def has_checkpoint(path: Path) -> bool:
    """Whether a run has come as far as its first checkpoint.

    Parameters
    ----------
    path
        The run's directory.
    """
    return any((path / name).exists() for name in (LAST, BEFORE))


def config_digest(config: Mapping[str, Any]) -> str:
    """A digest of a run's settings, which its checkpoints carry.

    Parameters
    ----------
    config
        The content of ``config.json``; versions do not count.
    """
    kept = {name: value for name, value in config.items() if name != "versions"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _load(file: Path) -> dict[str, Any]:
    try:
        with open_regular(file) as opened:
            _require_plain(opened)
            state = torch.load(opened, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= {*PARTS, "checksum"}:
            raise UsageError(f"{file} is no checkpoint of a run, or one of another version")
        for name, kind in PARTS.items():
            if not isinstance(state[name], kind) or isinstance(state[name], bool):
                raise ValueError(f"{name} is a {type(state[name]).__name__}")
        counts = [state[name] for name in ("steps", "updates", "evaluations")]
        if not all(0 <= count <= MOST_STEPS for count in counts):
            raise ValueError("a count is out of range")
        if not (math.isfinite(state["seconds"]) and state["seconds"] >= 0):
            raise ValueError("seconds is out of range")
        if state.pop("checksum") != _checksum(state):
            raise ValueError("its checksum is another")
        torch.Generator().set_state(state["generator"])  # raises where it is no such state
        if broken := _not_finite(state["agent"]):
            raise ValueError(f"{broken} holds a NaN or an infinity")
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{file.parent} holds no {file.name} yet") from error
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    except Exception as error:
        # Whatever torch, pickle or zipfile raise for bytes that a stranger or a bad disk wrote.
        text = one_line(error)[:200]
        raise UsageError(f"{file} is damaged: {text}") from error
    return state


def _require_plain(file: Any) -> None:
    """torch stores what it saves; a compressed part may be of any size when it is unpacked."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it holds compressed parts")
    file.seek(0)


def _checksum(state: Mapping[str, Any]) -> str:
    """SHA-256 over every name, number and tensor. torch does not read the sums of its archive."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor is larger than what is stored of it")
            digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"mapping {len(value)};".encode())
            for key, part in value.items():
                add(key)
                add(part)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value).__name__} {len(value)};".encode())
            for part in value:
                add(part)
        else:
            text = f"{type(value).__name__} {value!r}"
            digest.update(f"{len(text)} {text};".encode())

    add({name: state[name] for name in PARTS})
    return digest.hexdigest()


def _not_finite(value: Any, path: str = "agent") -> str:
    """Where a tensor that is not finite lies; empty where there is none."""
    if isinstance(value, Tensor):
        broken = value.is_floating_point() and not bool(torch.isfinite(value).all())
        return path if broken else ""
    if isinstance(value, Mapping):
        found = (_not_finite(part, f"{path}.{key}") for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        found = (_not_finite(part, f"{path}.{index}") for index, part in enumerate(value))
    else:
        return ""
    return next(filter(None, found), "")
