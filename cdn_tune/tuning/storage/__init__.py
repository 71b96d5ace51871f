"""The storage behind a study: opening, checking, writing through, waiting for a server."""
