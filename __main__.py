"""``python -m yggdrasill``: the command line."""

from yggdrasill.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
