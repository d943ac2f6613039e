"""``detrkit``, and ``python -m detrkit`` as torchrun needs it: ``torchrun ... -m detrkit train ...``."""

import signal
import sys


def main() -> None:
    """Run the command; Ctrl-C is one line wherever it comes, be it while modules are imported."""
    try:
        from detrkit.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    finally:  # all is done: Ctrl-C while Python tidies up ends it without a word
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
