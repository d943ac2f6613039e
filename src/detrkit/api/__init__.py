"""The verbs of detrkit as Python functions, one file a verb."""
