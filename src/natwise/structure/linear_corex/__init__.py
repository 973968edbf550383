"""Linear CorEx: latent factors, groups of variables, covariance from few samples."""

from natwise.structure.linear_corex._estimator import LinearCorEx
from natwise.structure.linear_corex._moments import corex_moments
from natwise.structure.linear_corex._selection import select_n_components

__all__ = ["LinearCorEx", "corex_moments", "select_n_components"]
