"""Make a bundle of a release, and compare the two."""
