"""A classic Flower app, as the tests of the launcher run it."""
