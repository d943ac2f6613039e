"""Will it learn? Everything that can be known in a minute, before the long run."""
