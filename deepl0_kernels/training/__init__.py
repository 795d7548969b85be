"""What trains an encoder: to predict codes, to tell classes, to find clusters."""

from .calibrate import calibrate
from .fit import (
    Classifier,
    Clusters,
    Course,
    cross_entropies,
    fit_to_classes,
    fit_to_clusters,
    fit_to_codes,
    minimise,
)
from .heads import logistic_head, start_head
from .problems import L0Regularized, MSparse, Problem

__all__ = [
    "Classifier",
    "Clusters",
    "Course",
    "L0Regularized",
    "MSparse",
    "Problem",
    "calibrate",
    "cross_entropies",
    "fit_to_classes",
    "fit_to_clusters",
    "fit_to_codes",
    "logistic_head",
    "minimise",
    "start_head",
]
