"""One shard of images in, table rows out: explainers, perturbations, controls and what becomes of the scores.

``cxr_ray.measure(...)`` calls ``cxr_ray.library.measure``: the folder and the function share their name.
"""

from cxr_ray.modules import make_callable

make_callable(__name__)
