"""From videos to features: decoding, backbones, extraction, and what a file records of how its features were made."""
