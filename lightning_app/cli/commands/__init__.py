"""One file per command; `fit` has more: its options, what it builds, its screens."""
