"""Files that put a bundle to work elsewhere: containers, clusters, services."""
