"""Attribution methods by family; ``explainers`` registers them."""
