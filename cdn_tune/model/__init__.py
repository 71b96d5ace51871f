"""CDN: query encoder, clip pooling, proposals, fusion, dynamic convolution stack, losses."""

from cdn_tune.model.cdn import CDN, CDNOutput

__all__ = ["CDN", "CDNOutput"]
