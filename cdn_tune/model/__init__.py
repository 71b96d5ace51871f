"""The networks: families of models, the layers and kernels they share."""
