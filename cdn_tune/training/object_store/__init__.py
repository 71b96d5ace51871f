"""Run folders on object stores: working copies, leases, synchronisation, fencing of old attempts."""
