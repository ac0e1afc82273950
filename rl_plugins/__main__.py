"""``python -m rl_plugins``, and the ``rl-plugins`` script."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line, or one line on what to install where the ``rl`` extra is missing."""
    try:
        from rl_plugins.cli import main as run
    except ModuleNotFoundError as error:
        print(f"rl-plugins: {error}; pip install 'natgrad[rl]'", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
