"""A trained policy as one ONNX file: observations of the task in, actions of the task out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, nn

from rl_plugins.data.autoreset import tensors
from rl_plugins.errors import UsageError
from rl_plugins.policies import RecurrentPolicy
from rl_plugins.runs.files import replace_whole

CHECKED, TOLERANCE = 16, 1e-5


class Deployed(nn.Module):
    """The leaves of an observation (N, …) -> actions (N, …) in the units of the task.

    Everything between the two is inside: the statistics that standardise observations, the mode of
    the distribution, the bounds of the action space.

    Parameters
    ----------
    policy
        Observations -> actions, or a distribution over them.
    action_map
        An :class:`rl_plugins.policies.action_maps.ActionMap`.
    like
        An observation: its structure.
    """

    def __init__(self, policy: nn.Module, action_map: Any, like: Any) -> None:
        super().__init__()
        self.policy = policy
        self._action_map, self._structure = action_map, optree.tree_structure(like)

    def forward(self, *leaves: Tensor) -> Any:
        """The actions, a tensor or a dict of them.

        Parameters
        ----------
        *leaves
            The observation's, (N, …), in the order of optree.
        """
        chosen = self.policy(optree.tree_unflatten(self._structure, leaves))
        actions = chosen if isinstance(chosen, Tensor) else chosen.mode
        return self._action_map.as_tensors(actions)


def export_policy(policy: Any, action_map: Any, observation_space: Any, out: Path) -> list[str]:
    """Write a policy as ONNX, with a free batch dimension.

    Parameters
    ----------
    policy
        Observations -> actions, or a distribution whose mode is taken.
    action_map
        An :class:`rl_plugins.policies.action_maps.ActionMap`.
    observation_space
        The space of one environment. What is float64 there is float32 in the file.
    out
        The file.

    Returns
    -------
    list
        The names of the inputs: "observation", or "observation.key…" for the entries of a Dict or
        Tuple. Outputs are "action", or "action.key…".

    Raises
    ------
    UsageError
        For recurrent policies, for plugins without a policy to export, where the file cannot be
        written, and where on random observations it does not act as the policy does.
    """
    if not out.name or out.is_dir():
        raise UsageError(f"cannot write {out}: it is no name of a file")
    if isinstance(policy, RecurrentPolicy):
        raise UsageError(
            "policies with a memory cannot be exported yet; train with --memory-size 0"
        )
    if not isinstance(policy, nn.Module) or not hasattr(action_map, "as_tensors"):
        raise UsageError("this algorithm has no policy that can be exported")
    from gymnasium.vector.utils import batch_space

    # Two: torch.export would take a batch of one for a constant.
    space = batch_space(observation_space, 2)
    space.seed(0)
    sample = tensors(space.sample())
    paths, leaves, _ = optree.tree_flatten_with_path(sample)
    names = [".".join(["observation", *map(str, path)]) for path in paths]
    model = Deployed(policy, action_map, sample).eval()
    with torch.no_grad():
        actions = model(*leaves)
    outputs = ["action"]
    if not isinstance(actions, Tensor):
        outputs = [
            ".".join(["action", *map(str, path)])
            for path in optree.tree_flatten_with_path(actions)[0]
        ]
    batch = torch.export.Dim("batch")
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with warnings.catch_warnings():
        # Deprecations inside torch and onnxscript, and notes on optional packages.
        warnings.simplefilter("ignore")
        exporter.setLevel(logging.ERROR)
        try:
            # Dynamic shapes by position: torch 2.6 looks for names among `input_names` where there
            # is one input.
            program: Any = torch.onnx.export(
                model,
                tuple(leaves),
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=(tuple({0: batch} for _ in leaves),),
            )
            content: bytes = program.model_proto.SerializeToString()
            _check(content, model, observation_space, names)
        except ImportError as error:
            raise UsageError(f"exporting needs onnx and onnxscript: {error}") from error
        finally:
            exporter.setLevel(level)
    try:
        # The weights inside, not in a second file beside it, which would be left behind.
        replace_whole(out, lambda file: file.write(content))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return names


def _check(content: bytes, model: nn.Module, space: Any, names: list[str]) -> None:
    """Compare what was exported with the policy, on random observations."""
    from gymnasium.vector.utils import batch_space
    from onnx import load_from_string
    from onnx.reference import ReferenceEvaluator

    many = batch_space(space, CHECKED)
    many.seed(1)
    leaves = optree.tree_leaves(tensors(many.sample()))
    with torch.no_grad():
        expected = optree.tree_leaves(model(*leaves))
    inputs = dict(zip(names, (leaf.numpy() for leaf in leaves), strict=True))
    found = ReferenceEvaluator(load_from_string(content)).run(None, inputs)
    for ours, theirs in zip(expected, found, strict=True):
        wanted, got = ours.double(), torch.from_numpy(np.array(theirs)).double()
        largest = wanted.abs().amax().clamp(min=1.0)
        alike = wanted.shape == got.shape
        if not alike or bool(((wanted - got).abs() > TOLERANCE * largest).any()):
            raise UsageError(
                "the exported file does not take the policy's actions on random observations: "
                "nothing was written; this is a fault of the exporter for this policy"
            )
