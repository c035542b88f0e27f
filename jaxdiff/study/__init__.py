"""A study: clips in, an answer out. Reading (clips to stored activations), features, analysis and report data."""
