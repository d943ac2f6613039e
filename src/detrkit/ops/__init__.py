"""Stateless tensor maths: boxes and images."""
