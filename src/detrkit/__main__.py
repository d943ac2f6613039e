"""``python -m detrkit``, the spelling that torchrun needs: ``torchrun ... -m detrkit train ...``."""

from detrkit.cli import main

if __name__ == "__main__":
    main()
