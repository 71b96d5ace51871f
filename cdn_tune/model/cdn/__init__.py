"""CDN: query encoder, clip pooling, moment map, fusion, dynamic convolution stack, losses."""
