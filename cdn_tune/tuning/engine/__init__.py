"""What runs the trials of a study: the decisions an engine asks for, Ray Tune, a virtual engine."""
