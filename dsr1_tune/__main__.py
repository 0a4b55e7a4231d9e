"""`python -m dsr1_tune` is `dsr1-tune`."""

from dsr1_tune.cli import main

if __name__ == "__main__":
    main()
