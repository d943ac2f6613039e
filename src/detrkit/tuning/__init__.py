"""Search for the settings of a training: trials that are full runs, kept in an Optuna study."""
