"""The command line: ``python -m cxr_ray.report RUN``."""

import sys

from cxr_ray.report.document import main

if __name__ == "__main__":
    sys.exit(main())
