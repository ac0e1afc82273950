"""The checks, one theme a file.

The first argument of a check function is the subject; the others are the case, one keyword for each
strategy in its decorator :func:`natgrad.testing.check.check`. It returns nothing and asserts.
"""
