"""The images: sources, manifests of patients and splits, bytes to pixels, synthetic phantoms."""
