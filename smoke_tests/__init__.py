"""Smoke tests: does the MLflow server at MLFLOW_TRACKING_URI do what its users rely on?"""
