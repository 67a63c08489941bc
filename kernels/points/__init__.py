"""Operators on point clouds: farthest point sampling, nearest neighbours, interpolation weights."""

from polysense.kernels.points.api import farthest_point_sampling, interpolate_weights, knn

__all__ = ["farthest_point_sampling", "interpolate_weights", "knn"]
