"""A task: what the copies of an environment are made from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from rl_plugins.errors import UsageError, one_line
from rl_plugins.imports import imported

Constructor = Callable[..., gym.Env[Any, Any]]
Wrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


@dataclass(frozen=True)
class Task:
    """How to make one environment, or a vector of them that is there already.

    Attributes
    ----------
    name
        Its registered name, or that of the object it came from.
    constructor
        Makes an environment; None: by its registered name.
    vector
        The caller's own copies, which train and evaluate alike; None: they are made.
    kwargs
        Arguments of the constructor.
    wrappers
        Around each copy, the first one innermost. An attribute ``evaluation_wrapper`` of one names
        what evaluations use in its place.
    frame_stack
        Observations shown at once, the last ones; 1: the newest alone.
    """

    name: str
    constructor: Constructor | None = None
    vector: VectorEnv | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Wrapper, ...] = ()
    frame_stack: int = 1

    @property
    def is_named(self) -> bool:
        """Whether the name alone makes it again."""
        return self.constructor is None and self.vector is None

    @property
    def evaluated(self) -> Task:
        """The same task as evaluations play it: with their wrappers where a wrapper has another."""
        wrappers = tuple(getattr(each, "evaluation_wrapper", each) for each in self.wrappers)
        return replace(self, wrappers=wrappers)

    def make(self, **options: Any) -> gym.Env[Any, Any]:
        """One copy, as the task's author and its wrappers made it.

        Parameters
        ----------
        **options
            Further arguments of the constructor, such as ``render_mode``.

        Raises
        ------
        UsageError
            Where it cannot be made.
        """
        try:
            if self.constructor is None:
                # Its checker wraps every step with assertions: `check_task` asks it once instead.
                made = gym.make(self.name, disable_env_checker=True, **{**self.kwargs, **options})
            else:
                made = self.constructor(**{**self.kwargs, **options})
            for wrapper in self.wrappers:
                made = wrapper(made)
            if self.frame_stack > 1:
                made = gym.wrappers.FrameStackObservation(made, self.frame_stack)
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a task is any code
            text = one_line(error)
            raise UsageError(
                f"cannot make the task {self.name!r}: {text}{_hint(error, options)}"
            ) from error
        if not isinstance(made, gym.Env):
            raise UsageError(
                f"the task {self.name!r} makes a {type(made).__name__}, expected a gymnasium.Env"
            )
        return made


def as_task(
    source: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Wrapper] = (),
    frame_stack: int = 1,
) -> Task:
    """A task from whatever names or makes one.

    Parameters
    ----------
    source
        A registered name ("module:Task-v0" imports the module first), a class or another
        constructor, an environment, a vector environment, or a :class:`Task`. An environment is
        copied: by its ``spec`` where it has one, else by ``copy.deepcopy``.
    kwargs
        Arguments of the constructor.
    wrappers
        Wrappers of each copy, the first one innermost, as objects or as "module:Class".
    frame_stack
        Observations shown at once.

    Raises
    ------
    UsageError
        For anything else, for an environment that cannot be copied, and for a wrapper that cannot
        be imported.
    """
    if isinstance(source, Task):
        return source
    options: dict[str, Any] = {
        "kwargs": dict(kwargs or {}),
        "wrappers": tuple(imported(w) if isinstance(w, str) else w for w in wrappers),
        "frame_stack": frame_stack,
    }
    if isinstance(source, str):
        return Task(source, **options)
    if isinstance(source, VectorEnv):
        if kwargs or wrappers or frame_stack > 1:
            raise UsageError(
                "env_kwargs, wrappers and frame_stack are for tasks that are made here; apply "
                "gymnasium's vector wrappers to your vector environment"
            )
        return Task(type(source.unwrapped).__name__, vector=source)
    if isinstance(source, gym.envs.registration.EnvSpec):
        return Task(source.id, lambda **given: gym.make(source, **given), **options)
    if isinstance(source, gym.Env):
        if kwargs:
            raise UsageError("env_kwargs are for a constructor; pass the class, not an environment")
        return Task(type(source.unwrapped).__name__, _copies(source), **options)
    if callable(source):
        return Task(getattr(source, "__name__", type(source).__name__), source, **options)
    raise UsageError(
        f"expected a task's name, a class, a constructor, an environment or a vector environment, "
        f"got {type(source).__name__}"
    )


def _copies(environment: gym.Env[Any, Any]) -> Constructor:
    spec = environment.spec
    if spec is not None:
        return lambda **given: gym.make(spec, **given)

    def copied(**given: Any) -> gym.Env[Any, Any]:
        if given:
            raise UsageError(
                f"an environment cannot be made again with {', '.join(given)}; pass the class"
            )
        return copy.deepcopy(environment)

    try:
        copied()
    except Exception as error:
        raise UsageError(
            f"this {type(environment.unwrapped).__name__} cannot be copied ({error}); pass its "
            "class, or a function that makes one"
        ) from error
    return copied


def _hint(error: BaseException, options: Mapping[str, Any]) -> str:
    if isinstance(error, gym.error.UnregisteredEnv):
        return (
            " Name the module that registers it, as in module:Task-v0 or --import module, or pass "
            "the class from Python"
        )
    if "render_mode" in options:
        mode = options["render_mode"]
        return (
            f". It was to be made with render_mode={mode!r}, which a task without pictures refuses"
        )
    return ""
