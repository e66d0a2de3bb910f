"""The load check: a mixed MLflow workload against any URL, and a verdict that gates a release."""
