"""Write a repaired copy of a data set."""
