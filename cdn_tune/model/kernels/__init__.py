"""How the convolutions of a map are computed: mixed kernels, tiles, minimal filtering."""
