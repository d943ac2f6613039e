"""The old name of the formats' module."""

from detrkit.data import formats, layout


def test_the_old_name_has_all_of_the_new_one():
    assert all(getattr(layout, name) is getattr(formats, name) for name in formats.__all__)
