"""The mathematics of sampling: schedulers, guidance and step caches; arrays and numbers only."""
