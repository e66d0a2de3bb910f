"""The pipeline on one machine: what was synthesized is executed, with real servers and without an AWS account."""
