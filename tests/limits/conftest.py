"""Beside `driving`, which the tests in the folders below use too."""
