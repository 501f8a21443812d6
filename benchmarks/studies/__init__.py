"""Measurements that were made once: each file made the results that it names."""
