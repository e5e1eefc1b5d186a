"""Programs around the package, each a package with a main module, and examples beside them."""
