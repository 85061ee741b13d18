"""Predictions of a student for video files and cameras."""

from crossdistill.predict.predictor import predict_files
from crossdistill.predict.results import ClassScore, NearestClip, Prediction, Scores

__all__ = ["ClassScore", "NearestClip", "Prediction", "Scores", "predict_files"]
