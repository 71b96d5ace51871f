"""Memory: of devices, by estimate, and what to do when there is too little."""
