"""Films of a trained policy: read back, their pictures are the task's."""

import subprocess
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
from gymnasium import spaces

from rl_plugins import UsageError, evaluate_run, train
from rl_plugins.cli import main
from rl_plugins.runs.film import watch_run

EPISODE = 6
SIZE = 64


class Bar(gym.Env):
    """A white bar on blue that moves on by a tenth of the width with each step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._observe(), {}

    def step(self, action):
        self.at += 1
        return self._observe(), 1.0, self.at == EPISODE, False, {}

    def render(self):
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        picture[..., 2] = 200
        start = self.at * SIZE // 10
        picture[:, start : start + SIZE // 10] = 255
        return picture

    def _observe(self):
        return np.array([self.at / 10], dtype=np.float32)


class Blind(Bar):
    """Draws nothing."""

    def render(self):
        return None


def trained_on(task, path):
    run = train(
        "a2c",
        task,
        total_steps=16,
        environments=1,
        rollout_length=16,
        hidden_sizes=(4,),
        evaluations=0,
        evaluation_episodes=0,
        run_dir=path,
    )
    return run.directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_on(Bar, tmp_path_factory.mktemp("film") / "run")


def of_bar(number):
    """Where the bar is drawn at a step."""
    env = Bar()
    env.at = number
    return env.render()


def read(film):
    return np.stack(list(imageio.imiter(film)))


def decoded(film):
    """(n, height, width, 3), by ffmpeg itself: imageio's reader leaves its process' pipes open."""
    imageio_ffmpeg: Any = pytest.importorskip("imageio_ffmpeg")

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        film,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(content, np.uint8).reshape(-1, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("suffix", "tolerance"),
    [
        (".gif", 0),
        pytest.param(
            ".mp4",
            20,  # of 255 levels: the film loses detail, and half the colours' resolution
            marks=pytest.mark.skipif(
                find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed"
            ),
        ),
    ],
)
def test_a_film_shows_what_the_task_draws(run, tmp_path, suffix, tolerance):
    film = tmp_path / f"film{suffix}"
    played = watch_run(run, out=film, episodes=2, task=Bar)
    assert (played.returns, played.lengths, played.cut) == ((6.0, 6.0), (6, 6), 0)
    frames = read(film) if suffix == ".gif" else decoded(film)
    assert frames.shape == (2 * EPISODE, SIZE, SIZE, 3)
    for number, frame in enumerate(frames):
        difference = np.abs(frame.astype(int) - of_bar(number % EPISODE)).mean()
        assert difference <= tolerance


def test_the_mean_of_what_is_watched_is_that_of_an_evaluation(run, tmp_path):
    played = watch_run(run, out=tmp_path / "film.gif", episodes=2, task=Bar)
    assert played.returns == evaluate_run(run, episodes=2, task=Bar).returns


def test_an_episode_that_does_not_end_is_cut(run, tmp_path):
    played = watch_run(run, out=tmp_path / "film.gif", step_limit=4, task=Bar)
    assert (played.lengths, played.cut) == ((4,), 1)


def test_a_task_without_pictures_is_refused_in_a_sentence(tmp_path):
    run = trained_on(Blind, tmp_path / "run")
    with pytest.raises(UsageError, match=r"the task draws no pictures: render\(\)"):
        watch_run(run, out=tmp_path / "film.gif", task=Blind)
    assert not (tmp_path / "film.gif").exists()


class Modeless(Bar):
    """Asserts a mode that it knows."""

    def __init__(self, render_mode="logs"):
        assert render_mode in ("logs", None)


def test_a_task_that_refuses_the_mode_is_told_from_a_broken_one(tmp_path):
    run = trained_on(Modeless, tmp_path / "run")
    with pytest.raises(UsageError, match="with render_mode='rgb_array', which a task without pict"):
        watch_run(run, out=tmp_path / "film.gif", task=Modeless)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "film.avi"}, r"a film is an \.mp4 or a \.gif, got 'film\.avi'"),
        ({"out": "film.gif", "episodes": 0}, "episodes and step_limit must be at least 1"),
        ({"out": "none/film.gif", "step_limit": 2}, "cannot write the film"),
    ],
)
def test_a_wrong_call_is_refused_in_a_sentence(run, tmp_path, options, message):
    options = {**options, "out": tmp_path / options["out"]}
    with pytest.raises(UsageError, match=message):
        watch_run(run, task=Bar, **options)


def test_the_command_line_writes_a_film(tmp_path, capsys):
    run, film = trained_on("MountainCar-v0", tmp_path / "run"), tmp_path / "film.gif"
    assert main(["watch", str(run), "--out", str(film), "--step-limit", "5"]) == 0
    said = capsys.readouterr().out
    assert "1 of them cut after 5 steps" in said
    assert f"film: {film}" in said
    assert read(film).shape == (5, 400, 600, 3)
