"""A trained policy as one ONNX file: observations of the task in, actions of the task out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor, nn

from rl_plugins.data.autoreset import tensors
from rl_plugins.errors import UsageError
from rl_plugins.policies import RecurrentPolicy


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
        The space of one environment.
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
        For recurrent policies, for plugins without a policy to export, and where the file cannot be
        written.
    """
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
            torch.onnx.export(
                model,
                tuple(leaves),
                str(out),
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=(tuple({0: batch} for _ in leaves),),
            )
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}") from error
        except ImportError as error:
            raise UsageError(f"exporting needs onnx and onnxscript: {error}") from error
        finally:
            exporter.setLevel(level)
    return names
