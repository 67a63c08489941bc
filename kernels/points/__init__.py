"""Operators on point clouds: farthest point sampling, nearest neighbours, balls, interpolation weights."""

from polysense.kernels.points.api import ball_query, farthest_point_sampling, interpolate_weights, knn

__all__ = ["ball_query", "farthest_point_sampling", "interpolate_weights", "knn"]
