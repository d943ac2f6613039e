"""How a detector fares elsewhere: on other data sets, and on images that weather, cameras or files have spoilt."""
