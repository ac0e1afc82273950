"""``python -m rl_plugins``, and the ``rl-plugins`` script."""

from __future__ import annotations

import io
import sys


def main() -> int:
    """The command line, or, without the ``rl`` extra, one line that says how to install it."""
    # A "±" or "τ" that a terminal cannot show must not end a run, or --help, with a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        from rl_plugins.cli import main as run
    except ModuleNotFoundError as error:
        print(f"rl-plugins: {error}; pip install 'natgrad[rl]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the imports take seconds
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
