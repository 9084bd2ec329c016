"""One shard of images in, table rows out: explainers, perturbations, controls and what becomes of the scores."""
