"""CDN: query encoder, clip pooling, moment map, fusion, dynamic convolution stack, losses."""

from cdn_tune.model.cdn.network import CDN, CDNOutput

__all__ = ["CDN", "CDNOutput"]
