"""Pure maths of moments: spans, the temporal map, suppression, recall. No I/O, no model."""
