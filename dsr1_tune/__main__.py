"""`dsr1-tune`, which is `python -m dsr1_tune` too: the command line, and a Ctrl-C while it is still being imported."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from dsr1_tune.cli import main as run

        run()
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
