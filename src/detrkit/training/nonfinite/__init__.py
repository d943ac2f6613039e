"""Steps that are not finite: found, saved, replayed."""
