"""Where images come from: sources, manifests of patients and splits, bytes to pixels, synthetic phantoms."""
