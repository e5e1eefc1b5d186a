"""Programs that use the package: benchmarks, comparisons, tables of results, and small examples."""
