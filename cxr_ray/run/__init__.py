"""What only a whole run needs: planning, the cluster, Ray Tune and Ray Data."""
