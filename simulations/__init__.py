"""Commands around the package: benchmarks and examples."""
