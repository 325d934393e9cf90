"""Where configurations come from: the search space, the sampler that proposes in it, and the pruner."""
