"""Where configurations come from: coordinates over the knobs, and the sampler that proposes in them."""
