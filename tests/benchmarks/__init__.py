"""`make bench`: this image's server and stock `mlflow server`, measured in turn on one machine."""
