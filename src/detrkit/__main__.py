"""``detrkit``, and ``python -m detrkit`` as torchrun needs it: ``torchrun ... -m detrkit train ...``."""

import sys


def main() -> None:
    """Run the command; Ctrl-C is one line wherever it comes, be it while modules are imported."""
    try:
        from detrkit.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
